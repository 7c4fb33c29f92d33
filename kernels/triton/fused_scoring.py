"""Row statistics of hidden x weight^T without storing logits, for scoring without gradients.

A program takes a tile of rows through a part of the vocabulary and keeps the four running statistics of its rows; the
parts are merged in order. Against a product of the vendor's library and a kernel over its logits this saves writing and
reading them, 8 bytes a logit, and loses what its own product is slower by; `pays` weighs the two.

Shape legend: T tokens, D hidden size, V vocabulary rows of this rank, P parts of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from aapa.kernels.chunked.glue import finish, merge
from aapa.kernels.chunked.shard import Shard
from aapa.kernels.triton.launch import FUSED, LOWEST

# Measured share of the library's own speed that this kernel's product reaches, by compute capability. Nothing has been
# measured yet: it is not chosen by itself.
MEASURED_EFFICIENCY: dict[tuple[int, int], float] = {}
# Operations a second over bytes a second, of bfloat16 products and of copies: 790e12 / 4.3e12, figures of a vendor's
# libraries on an H200 that were taken from elsewhere; this code has measured none.
OPERATIONS_PER_BYTE = 184
# Row tiles whose hidden states the L2 cache keeps while they go through the vocabulary.
TILES_TOGETHER = 16


@dataclass(frozen=True)
class Tile:
    """Sizes of a tile, and launch parameters.

    Attributes:
        halves: whether the tile's columns are folded into the statistics in two halves, which takes fewer registers.
    """

    rows: int
    columns: int
    depth: int
    halves: bool
    warps: int
    stages: int


# From registers, spills and shared memory of the compiled kernels; speed is unmeasured.
TILES = {
    "sm80": Tile(128, 128, 64, halves=False, warps=8, stages=3),
    "sm90": Tile(128, 256, 64, halves=True, warps=8, stages=3),
    "sm100": Tile(128, 128, 64, halves=False, warps=8, stages=3),
    "gfx942": Tile(128, 128, 64, halves=False, warps=8, stages=2),
    "interpreter": Tile(16, 32, 16, halves=True, warps=4, stages=1),
}


@triton.jit
def _fold(z, maximum, total, product, target, column, place):
    """The running statistics of rows after more columns of logits, all in units of log 2."""
    highest = tl.maximum(maximum, tl.max(z, 1))
    factor = tl.exp2(maximum - highest)
    away = z - highest[:, None]
    p = tl.exp2(away)
    product = factor * (product + (maximum - highest) * total) + tl.sum(p * away, 1)
    total = factor * total + tl.sum(p, 1)
    target += tl.sum(tl.where(place[None, :] == column[:, None], z, 0.0), 1)
    return highest, total, product, target


@triton.jit
def _scored_rows(
    hidden_TD, weight_VD, column_T, scale_T, stats_P4T, tokens, columns, hidden_stride, weight_stride, parts, part,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HALVES: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """Statistics of a tile of rows over the columns [which x part, (which + 1) x part).

    Rows and columns behind the end repeat the last one, so that loads need no mask; such columns count as minus
    infinity, such rows are not stored.
    """
    tiles = tl.cdiv(tokens, ROWS)
    group = tl.program_id(0) // (TOGETHER * parts)
    within = tl.program_id(0) % (TOGETHER * parts)
    members = tl.minimum(tiles - group * TOGETHER, TOGETHER)
    tile = group * TOGETHER + within % members
    which = within // members
    row = tile * ROWS + tl.arange(0, ROWS)
    inside = row < tokens
    column = tl.load(column_T + row, mask=inside, other=-1)
    scale = tl.full((ROWS,), 1.4426950408889634, tl.float32)
    if scale_T is not None:
        scale *= tl.load(scale_T + row, mask=inside, other=1.0)
    depth = tl.arange(0, DEPTH)
    hidden = hidden_TD + tl.minimum(row, tokens - 1)[:, None].to(tl.int64) * hidden_stride + depth[None, :]
    maximum = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    product = tl.zeros((ROWS,), tl.float32)
    target = tl.zeros((ROWS,), tl.float32)
    end = tl.minimum((which + 1) * part, columns)
    for first in range(which * part, end, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        weight = weight_VD + tl.minimum(place, columns - 1)[:, None].to(tl.int64) * weight_stride + depth[None, :]
        z = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, D, DEPTH):
            z = tl.dot(tl.load(hidden + k), tl.trans(tl.load(weight + k)), z)
        z = tl.where((place < end)[None, :], z * scale[:, None], LOWEST)
        if HALVES:
            z0, z1 = tl.split(tl.permute(tl.reshape(z, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
            p0, p1 = tl.split(tl.permute(tl.reshape(place, (2, COLUMNS // 2)), (1, 0)))
            maximum, total, product, target = _fold(z0, maximum, total, product, target, column, p0)
            maximum, total, product, target = _fold(z1, maximum, total, product, target, column, p1)
        else:
            maximum, total, product, target = _fold(z, maximum, total, product, target, column, place)
    out = stats_P4T + which.to(tl.int64) * 4 * tokens + row
    log_2 = 0.6931471805599453
    tl.store(out, maximum * log_2, mask=inside)
    tl.store(out + tokens, total, mask=inside)
    tl.store(out + 2 * tokens, product * log_2, mask=inside)
    tl.store(out + 3 * tokens, target * log_2, mask=inside)


def tile_of(device: torch.device) -> Tile:
    """Tile of a device; that of the oldest GPU where it is none we compiled for."""
    if device.type != "cuda":
        return TILES["interpreter"]
    if torch.version.hip is not None:
        return TILES["gfx942"]
    major, _ = torch.cuda.get_device_capability(device)
    return TILES.get(f"sm{major}0", TILES["sm80"])


def pays(hidden: Tensor, weight: Tensor, efficiency: float | None = None) -> bool:
    """Whether the fused kernel can be used and is the faster one: half-precision inputs on a GPU, D in whole tiles.

    With a share e of the library's speed its product takes 2 T V D (1 / e - 1) / speed longer, and 8 T V / bandwidth of
    traffic is saved: it pays below D = 4 x speed / bandwidth x e / (1 - e).

    Args:
        efficiency: e; None takes what was measured on this kind of GPU, and without that the answer is no.
    """
    if not hidden.is_cuda or hidden.dtype not in (torch.bfloat16, torch.float16) or hidden.dtype != weight.dtype:
        return False
    if hidden.shape[1] % tile_of(hidden.device).depth:
        return False
    if efficiency is None:
        efficiency = MEASURED_EFFICIENCY.get(torch.cuda.get_device_capability(hidden.device), 0.0)
    return hidden.shape[1] * (1.0 - efficiency) < 4 * OPERATIONS_PER_BYTE * efficiency


def scored_rows(hidden_TD: Tensor, weight_VD: Tensor, column_T: Tensor, scale_T: Tensor | None) -> Tensor:
    """[4, T] float32 statistics of rows, as `row_statistics` has them of stored logits.

    Args:
        hidden_TD, weight_VD: [T, D], [V, D], bfloat16 or float16, D a multiple of the tile's depth.
        column_T: [T] int64, column of the target, -1 where it is in another part of the vocabulary.
        scale_T: [T] float32, 1 / temperature; None for 1.
    """
    hidden_TD, weight_VD = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden_TD, weight_VD))
    (tokens, depth), columns = hidden_TD.shape, weight_VD.shape[0]
    if not tokens or not columns:
        stats_4T = hidden_TD.new_zeros(4, tokens, dtype=torch.float32)
        stats_4T[0] = float("-inf")
        return stats_4T
    tile = tile_of(hidden_TD.device)
    assert depth % tile.depth == 0, (depth, tile)
    tiles = triton.cdiv(tokens, tile.rows)
    part = _part(tiles, columns, tile, hidden_TD.device)
    parts = triton.cdiv(columns, part)
    stats_P4T = hidden_TD.new_empty(parts, 4, tokens, dtype=torch.float32)
    _scored_rows[(tiles * parts,)](
        hidden_TD,
        weight_VD,
        column_T.contiguous(),
        None if scale_T is None else scale_T.contiguous(),
        stats_P4T,
        tokens,
        columns,
        hidden_TD.stride(0),
        weight_VD.stride(0),
        parts,
        part,
        D=depth,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        HALVES=tile.halves,
        TOGETHER=TILES_TOGETHER,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **FUSED,
    )
    return merge(stats_P4T)


def _part(tiles: int, columns: int, tile: Tile, device: torch.device) -> int:
    """Columns of a part: as many parts as fill the GPU with TILES_TOGETHER row tiles at a time."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    parts = max(1, processors // min(tiles, TILES_TOGETHER))
    return triton.cdiv(triton.cdiv(columns, parts), tile.columns) * tile.columns


def scores(hidden_TD: Tensor, target_T: Tensor, temperature_T: Tensor | None, shard: Shard) -> tuple[Tensor, Tensor]:
    """(log-prob, entropy) of all rows over the whole vocabulary, [T] float32; `hidden_TD` holds all tokens."""
    scale_T = None if temperature_T is None else temperature_T.float().reciprocal()
    # As it is stored: the products of chunks may read another dtype.
    weight_VD = shard.weight_VD[: shard.real]
    stats_4T = scored_rows(hidden_TD, weight_VD, shard.whole.columns(target_T), scale_T)
    logprob_T, entropy_T, _ = finish(shard.merged(stats_4T, target_T))
    return logprob_T, entropy_T
