"""What operations refuse before they run, by the argument's name.

Values of tensors are looked at on the CPU. On a GPU the host would have to wait for them, so there only shapes and
types are checked, unless the operation waits anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def check_integers(name: str, tensor: Tensor) -> None:
    import torch

    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {tensor.dtype}")


def check_offsets(name: str, offsets: Tensor, total: int, increasing: bool = False, wait: bool = False) -> None:
    """Refuse what is not a list of offsets from 0 to `total`.

    Args:
        increasing: whether every span holds something.
        wait: look at the values on a GPU as well.
    """
    check_integers(name, offsets)
    if offsets.dim() != 1 or not len(offsets):
        raise ValueError(f"{name}: expected one dimension and at least one offset, got shape {tuple(offsets.shape)}")
    if offsets.device.type != "cpu" and not wait:
        return
    values = offsets.long()
    wrong = (values[0] != 0) | (values[-1] != total) | (values.diff() < int(increasing)).any()
    if bool(wrong):
        kind = "increasing offsets" if increasing else "offsets"
        raise ValueError(f"{name}: expected {kind} from 0 to {total}, got {offsets.tolist()[:8]} …")


def check_positive(name: str, tensor: Tensor | None) -> None:
    """Refuse zeros, negative numbers and NaN on the CPU."""
    if tensor is not None and tensor.device.type == "cpu" and not bool((tensor > 0).all()):
        raise ValueError(f"{name}: expected positive numbers, got {tensor[~(tensor > 0)].tolist()[:8]} …")
