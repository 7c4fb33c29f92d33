"""Means of spans of rows, in at most two launches and in a fixed order.

Shape legend: T rows, S spans, P pieces of spans, D columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aapa.kernels.triton.launch import FUSED, accumulator, power_of_two
from aapa.kernels.triton.search import owner_of_piece, pieces, steps

# Rows of a piece: a span of up to so many is one program's (for each block of columns), a longer one has several.
LENGTH = 128
# A tile of 8 rows by half a KB: two loads of 16 bytes a thread.
ROWS = 8
ROW_BYTES = 512
WARPS = 4


@triton.jit
def _piece_sums(
    hidden_TD, offsets_S, part_PD, mean_SD, stride, spans, width, search_steps,
    LENGTH: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum of a piece's rows; the mean itself where the piece is the whole span."""
    piece = tl.program_id(0)
    span, start, stop = owner_of_piece(offsets_S, spans, piece, LENGTH, search_steps)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < width
    total = tl.zeros((ROWS, WIDTH), ACC)
    for first in range(start, stop, ROWS):
        row = first + tl.arange(0, ROWS)
        place = hidden_TD + row[:, None].to(tl.int64) * stride + column[None, :]
        total += tl.load(place, mask=(row < stop)[:, None] & inside[None, :], other=0.0).to(ACC)
    found = tl.sum(total, 0)
    begin = tl.load(offsets_S + span).to(tl.int32)
    length = tl.load(offsets_S + span + 1).to(tl.int32) - begin
    if start < stop:
        if length <= LENGTH:
            tl.store(mean_SD + span.to(tl.int64) * width + column, found / length, mask=inside)
        else:
            tl.store(part_PD + piece.to(tl.int64) * width + column, found, mask=inside)


@triton.jit
def _long_means(offsets_S, part_PD, mean_SD, width, LENGTH: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """Means of the spans that have several pieces, added up in order."""
    span = tl.program_id(0)
    begin = tl.load(offsets_S + span).to(tl.int32)
    length = tl.load(offsets_S + span + 1).to(tl.int32) - begin
    if length > LENGTH:
        column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = column < width
        first = begin // LENGTH + span
        total = tl.zeros((WIDTH,), ACC)
        place = part_PD + first.to(tl.int64) * width + column
        for _ in range(tl.cdiv(length, LENGTH)):
            total += tl.load(place, mask=inside, other=0.0)
            place += width
        tl.store(mean_SD + span.to(tl.int64) * width + column, total / length, mask=inside)


def segment_means(hidden_TD: Tensor, offsets_S: Tensor) -> Tensor:
    """[S, D] mean of the rows offsets[k] <= t < offsets[k + 1], float32, or float64 for float64 rows.

    A span's mean does not depend on where it lies nor on its neighbours, to the last bit.

    Args:
        hidden_TD: [T, D] rows.
        offsets_S: [S + 1] int32 or int64, strictly increasing from 0 to T.
    """
    hidden_TD = hidden_TD if hidden_TD.stride(1) == 1 else hidden_TD.contiguous()
    offsets_S = offsets_S.to(hidden_TD.device).contiguous()
    (rows, width), spans = hidden_TD.shape, offsets_S.shape[0] - 1
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    mean_SD = hidden_TD.new_empty(spans, width, dtype=dtype)
    if not spans or not width:
        return mean_SD
    programs = pieces(rows, spans, LENGTH)
    part_PD = hidden_TD.new_empty(programs if rows > LENGTH else 1, width, dtype=dtype)
    block = power_of_two(width, 16, ROW_BYTES // hidden_TD.itemsize)
    options = {"WIDTH": block, "LENGTH": LENGTH, "ACC": accumulator(dtype), "num_warps": WARPS, **FUSED}
    _piece_sums[(programs, triton.cdiv(width, block))](
        hidden_TD,
        offsets_S,
        part_PD,
        mean_SD,
        hidden_TD.stride(0),
        spans,
        width,
        steps(spans),
        ROWS=ROWS,
        **options,
    )
    if rows > LENGTH:
        _long_means[(spans, triton.cdiv(width, block))](offsets_S, part_PD, mean_SD, width, **options)
    return mean_SD
