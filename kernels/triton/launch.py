"""What launches have in common."""

from __future__ import annotations

import torch
import triton.language as tl

# Contracting a * b + c into one rounding is the compiler's default; it is said at each launch, so that it is the same
# ahead of time and at run time.
FUSED = {"enable_fp_fusion": True}
# Stands for minus infinity in running maxima: differences of it stay finite, and its exponential is 0.
LOWEST = tl.constexpr(-1e30)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Type that kernels compute in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def power_of_two(size: int, least: int, most: int) -> int:
    """Smallest power of two that is no less than `size`, between the bounds; a block has such a size."""
    return min(most, max(least, 1 << max(0, size - 1).bit_length()))
