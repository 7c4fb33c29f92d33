"""Which rows the head works on, and how many at a time.

Shape legend: T tokens of the micro-batch, R rows that are worked on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from aapa.kernels.reference.policy_loss import indices

# Bytes of one chunk's logits. On a GPU chunks of 4096 rows keep the read-modify-write of a float32 dWeight small beside
# the products. On a CPU products are as fast with few rows, and memory below 32 MiB is kept by glibc between calls,
# which spares the page faults.
CHUNK_BYTES = {"cpu": 30 << 20, "cuda": 5 << 29}
MAX_ROWS = 4096
MIN_ROWS = 128
LEAN_BYTES = {"cpu": 1 << 25, "cuda": 200_000_000}
MIN_COLUMNS = 128
# Rows without gradient are left out of the two products of the backward pass where fewer than this share has any.
COMPACT_BELOW = 0.75


def gradient_rows(logprob_grad_R: Tensor, entropy_grad_R: Tensor | None, below: float = COMPACT_BELOW) -> Tensor | None:
    """Rows of a chunk with a gradient: clipped tokens and groups of equal rewards have none. None: take all."""
    nonzero_R = logprob_grad_R != 0
    if entropy_grad_R is not None:
        nonzero_R |= entropy_grad_R != 0
    return indices(nonzero_R, below)


@dataclass(frozen=True)
class Plan:
    """How logits are cut: chunks of rows, and blocks of the vocabulary in each of them.

    Attributes:
        rows: of a chunk.
        columns: of a block; None for all of this rank's.
    """

    rows: int
    columns: int | None

    @classmethod
    def of(cls, mode: Literal["fast", "lean"], rows: int, vocab: int, like: Tensor) -> Plan:
        """The plan for so many rows and so large a vocabulary (of a rank, the same on each), in the dtype of `like`.

        "fast": chunks of nearly equal size that fit the budget of the device, each with the whole vocabulary; "lean":
        all rows at once, and blocks of the vocabulary that fit.
        """
        if mode == "lean":
            return cls(max(1, rows), _columns(LEAN_BYTES, rows, like))
        most = min(MAX_ROWS, max(MIN_ROWS, _budget(CHUNK_BYTES, like) // max(1, vocab * like.itemsize)))
        count = max(1, -(-rows // most))
        size = max(1, -(-rows // count))
        return cls(size, None)

    def chunks(self, rows: int) -> Iterator[slice]:
        return (slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows))


def _budget(budgets: dict[str, int], like: Tensor) -> int:
    kind = like.device.type
    return budgets[kind if kind in budgets else "cuda"]


def _columns(budgets: dict[str, int], rows: int, like: Tensor) -> int:
    return max(MIN_COLUMNS, _budget(budgets, like) // max(1, rows * like.itemsize) // MIN_COLUMNS * MIN_COLUMNS)
