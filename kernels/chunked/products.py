"""Matrix products of the head: which dtype they run in, and where their results go.

Shape legend: R rows of a chunk, D hidden size, V vocabulary rows of this rank or of a block of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.reference.vocab_parallel import statistics_dtype

HALF = (torch.bfloat16, torch.float16)


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the products read: half precision where the device multiplies it into float32, else the dtype of the
    statistics. Logits rounded to half precision would put several per cent of error into an importance ratio."""
    if hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype in HALF:
        return hidden.dtype
    return statistics_dtype(hidden)


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out = left @ right in the dtype of `out`, which is that of the operands or float32."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total += left @ right in the dtype of `total`, which is that of the operands or float32."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right)
    return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
