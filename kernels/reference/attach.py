"""Hands a finished loss to autograd together with gradients that were made in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
