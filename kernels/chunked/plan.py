"""Which rows the head works on, and how many at a time.

Shape legend: T tokens of the micro-batch, R rows that are worked on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aapa.kernels.fields import COMPONENTS, TokenFields, TokenLossSpec

# Bytes of one chunk's logits. On a GPU chunks of 4096 rows keep the read-modify-write of a float32 dWeight small beside
# the products; on a CPU products are as fast with few rows, whose logits the last-level cache may still hold.
CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 5 << 29}
MAX_ROWS = 4096
MIN_ROWS = 128
LEAN_BYTES = {"cpu": 1 << 25, "cuda": 200_000_000}
MIN_COLUMNS = 128
# Rows without gradient are left out of the two products of the backward pass where fewer than this share has any.
COMPACT_BELOW = 0.75


def needed_rows(fields: TokenFields, spec: TokenLossSpec) -> Tensor | None:
    """[R] int64, rows that loss or metrics need; None where all are.

    A row without weight in any component is in no sum: neither loss, gradient nor metric changes when it is left out.
    Only ratios over sequences look at rows without weight of their own.
    """
    needed_T = torch.zeros_like(fields.target_T, dtype=torch.bool)
    for component in COMPONENTS:
        weight_T = fields.weight(component)
        if weight_T is not None:
            needed_T |= weight_T != 0
    if spec.ratio_level == "sequence" and fields.sequence_T is not None:
        needed_T |= fields.sequence_T >= 0
    return _indices(needed_T, 1.0)


def gradient_rows(logprob_grad_R: Tensor, entropy_grad_R: Tensor | None, below: float = COMPACT_BELOW) -> Tensor | None:
    """Rows of a chunk with a gradient: clipped tokens and groups of equal rewards have none. None: take all."""
    nonzero_R = logprob_grad_R != 0
    if entropy_grad_R is not None:
        nonzero_R |= entropy_grad_R != 0
    return _indices(nonzero_R, below)


def _indices(chosen: Tensor, below: float) -> Tensor | None:
    indices = chosen.nonzero()[:, 0]
    return indices if len(indices) < below * len(chosen) else None


def row_chunks(rows: int, columns: int, like: Tensor) -> Iterator[slice]:
    """Slices of nearly equal size whose logits fit the budget of the device of `like`, in its dtype."""
    budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cuda"])
    most = min(MAX_ROWS, max(MIN_ROWS, budget // max(1, columns * like.itemsize)))
    count = -(-rows // most)
    size = -(-rows // max(1, count))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, max(1, size)))


def block_columns(rows: int, like: Tensor) -> int:
    """Vocabulary rows of a block in lean mode."""
    budget = LEAN_BYTES.get(like.device.type, LEAN_BYTES["cuda"])
    return max(MIN_COLUMNS, budget // max(1, rows * like.itemsize) // MIN_COLUMNS * MIN_COLUMNS)
