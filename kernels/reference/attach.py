"""Hands a finished loss to autograd together with gradients that were made in the forward pass.

And `first_order`: what all backward passes of our own have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from aapa.kernels.dispatch import without_autocast


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass without a second derivative: asking for one raises, and autocast rounds nothing in it.

    torch's `once_differentiable` lets `create_graph=True` pass where the upstream gradient is a constant: the second
    derivative would be taken for 0.
    """

    @wraps(backward)
    def run(ctx: Any, *upstream: Tensor | None) -> Any:
        device = next((grad.device for grad in upstream if grad is not None), torch.device("cpu"))
        with torch.no_grad(), without_autocast(device):
            found = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if grad is None else _NoSecond.apply(grad.detach().requires_grad_()) for grad in found)

    return run


class _NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise RuntimeError("aapa.kernels: the operation has no second derivative; leave out create_graph=True")


def refuse_recomputation(op: str) -> None:
    """Raise inside a backward pass: only activation checkpointing runs forwards with gradients there.

    Raises:
        RuntimeError: always there; what was added to an accumulator once would be added again.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(f"{op}: leave it outside of activation checkpointing; it would add twice")


def attach(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    loss: Tensor,
    hidden_grad_TD: Tensor | None,
    weight_grad_VD: Tensor | None,
    accumulated: bool,
) -> Tensor:
    """The loss, attached to hidden states and weight.

    Args:
        hidden_grad_TD, weight_grad_VD: gradients that autograd shall return; None where nobody needs them.
        accumulated: dWeight is in `main_grad` already. Autograd then gets zeros, and an upstream gradient other than
            1 raises RuntimeError in the backward pass.
    """
    attached: Tensor = _Attach.apply(hidden_TD, weight_VD, loss, hidden_grad_TD, weight_grad_VD, accumulated)
    return attached


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        loss: Tensor,
        hidden_grad_TD: Tensor | None,
        weight_grad_VD: Tensor | None,
        accumulated: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight_VD, hidden_grad_TD, weight_grad_VD)
        ctx.accumulated = accumulated
        return loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> Any:
        weight_VD, hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        if ctx.accumulated:
            if upstream.item() != 1.0:
                raise RuntimeError(
                    f"linear_policy_loss: expected an upstream gradient of 1 with main_grad, got {upstream.item()}; "
                    "loss scaling and division by micro-batches must be off"
                )
            return hidden_grad_TD, weight_VD.new_zeros(()).expand_as(weight_VD), None, None, None, None
        grads = [None if g is None else g * upstream.to(g.dtype) for g in (hidden_grad_TD, weight_grad_VD)]
        return *grads, None, None, None, None
