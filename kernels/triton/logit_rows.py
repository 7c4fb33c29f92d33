"""Two kernels over rows of logits: their statistics in one read, and their gradient in place.

Shape legend: R rows of a chunk, V columns, that is vocabulary rows of this rank or of a block of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aapa.kernels.chunked.glue import RowTerms
from aapa.kernels.triton.launch import FUSED, LOWEST, accumulator, power_of_two

# A program reads a row in blocks: 2048 float32 over 8 warps are two loads of 16 bytes a thread.
MOST_COLUMNS = 2048
WARPS = 8


@triton.jit
def _logit_statistics(
    logits_RV,
    column_R,
    scale_R,
    stats_4R,
    row_stride,
    rows,
    columns,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Maximum m, s = sum exp(z - m), u = sum exp(z - m) (z - m) and target logit of one row.

    Every lane keeps the three of its own columns, so the row is read once and reduced once. Of the old and the new
    maximum one exponential is 1: the other is all that a column costs.
    """
    row = tl.program_id(0).to(tl.int64)
    start = logits_RV + row * row_stride
    scale = 1.0
    if scale_R is not None:
        scale = tl.load(scale_R + row).to(ACC)
    maximum = tl.full((BLOCK,), LOWEST, ACC)
    total = tl.zeros((BLOCK,), ACC)
    product = tl.zeros((BLOCK,), ACC)
    for first in range(0, columns, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < columns
        z = tl.load(start + place, mask=inside, other=LOWEST).to(ACC) * scale
        step = z - maximum
        smaller = tl.exp(-tl.abs(step))
        above = inside & (step > 0)
        grown = tl.where(above, smaller * total + 1.0, total + smaller)
        moved = tl.where(above, smaller * (product - step * total), product + smaller * step)
        total = tl.where(inside, grown, total)
        product = tl.where(inside, moved, product)
        maximum = tl.where(above, z, maximum)
    top = tl.max(maximum, 0)
    shift = maximum - top
    factor = tl.exp(shift)
    column = tl.load(column_R + row)
    target = tl.load(start + column, mask=column >= 0, other=0.0).to(ACC) * scale
    out = stats_4R + row
    tl.store(out, top)
    tl.store(out + rows, tl.sum(factor * total, 0))
    tl.store(out + 2 * rows, tl.sum(factor * (product + shift * total), 0))
    tl.store(out + 3 * rows, target)


@triton.jit
def _logit_gradient(
    logits_RV,
    grad_RV,
    column_R,
    scale_R,
    lse_R,
    logprob_grad_R,
    entropy_R,
    entropy_grad_R,
    row_stride,
    grad_stride,
    columns,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    NARROWER: tl.constexpr,
):
    """scale (g (1[v = column] - p_v) - e p_v (log p_v + entropy)) of one row, over the memory of its logits."""
    row = tl.program_id(0).to(tl.int64)
    start, out = logits_RV + row * row_stride, grad_RV + row * grad_stride
    scale = 1.0
    if scale_R is not None:
        scale = tl.load(scale_R + row).to(ACC)
    lse = tl.load(lse_R + row).to(ACC)
    slope = tl.load(logprob_grad_R + row).to(ACC) * scale
    column = tl.load(column_R + row)
    entropy = 0.0
    spread = 0.0
    if entropy_grad_R is not None:
        entropy = tl.load(entropy_R + row).to(ACC)
        spread = tl.load(entropy_grad_R + row).to(ACC) * scale
    for first in range(0, columns, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < columns
        log_p = tl.load(start + place, mask=inside, other=LOWEST).to(ACC) * scale - lse
        value = slope
        if entropy_grad_R is not None:
            value = slope + spread * (log_p + entropy)
        grad = tl.where(place == column, slope, 0.0) - tl.exp(log_p) * value
        if NARROWER:
            # The gradient of a column lies where logits of other lanes lay: all must have been read.
            tl.debug_barrier()
        tl.store(out + place, grad.to(grad_RV.dtype.element_ty), mask=inside)


def row_statistics(logits_RV: Tensor, column_R: Tensor, scale_R: Tensor | None) -> Tensor:
    """[4, R]: maximum, sum of exponentials, sum of exponential x distance from the maximum, logit of the target.

    Args:
        logits_RV: [R, V] float32 or float64, columns next to each other.
        column_R: [R] int64, column of the target, -1 where it is in another part of the vocabulary.
        scale_R: [R], 1 / temperature; None for 1.
    """
    rows, columns = logits_RV.shape
    stats_4R = logits_RV.new_empty(4, rows)
    if not columns:
        stats_4R.zero_()
        stats_4R[0] = float("-inf")
    elif rows:
        assert logits_RV.stride(1) == 1, logits_RV.stride()
        _logit_statistics[(rows,)](
            logits_RV,
            column_R.contiguous(),
            None if scale_R is None else scale_R.contiguous(),
            stats_4R,
            logits_RV.stride(0),
            rows,
            columns,
            BLOCK=power_of_two(columns, 16, MOST_COLUMNS),
            ACC=accumulator(logits_RV.dtype),
            num_warps=WARPS,
            **FUSED,
        )
    return stats_4R


def logits_gradient(logits_RV: Tensor, column_R: Tensor, terms: RowTerms, dtype: torch.dtype) -> Tensor:
    """Gradient of the logits before the temperature, [R, V] in `dtype`, in the memory of the logits.

    In half precision a row takes the first half of its logits' memory; the result's rows are as far apart as theirs.
    """
    rows, columns = logits_RV.shape
    narrower = logits_RV.element_size() // dtype.itemsize
    grad_RV = logits_RV.view(dtype)[:, :columns] if narrower > 1 else logits_RV
    if rows and columns:
        assert logits_RV.stride(1) == 1, logits_RV.stride()
        _logit_gradient[(rows,)](
            logits_RV,
            grad_RV,
            column_R.contiguous(),
            None if terms.scale_R is None else terms.scale_R.contiguous(),
            terms.lse_R.contiguous(),
            terms.logprob_grad_R.contiguous(),
            terms.entropy_R.contiguous(),
            None if terms.entropy_grad_R is None else terms.entropy_grad_R.contiguous(),
            logits_RV.stride(0),
            grad_RV.stride(0),
            columns,
            BLOCK=power_of_two(columns, 16, MOST_COLUMNS),
            ACC=accumulator(logits_RV.dtype),
            NARROWER=narrower > 1,
            num_warps=WARPS,
            **FUSED,
        )
    return grad_RV
