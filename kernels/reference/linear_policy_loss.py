"""Reference of `linear_policy_loss`: three GEMMs per chunk of rows, gradients made in the forward pass.

Shape legend: T tokens, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.policy_loss import policy_loss
from aapa.kernels.reference.vocab_parallel import (
    CHUNK_ROWS,
    VocabShard,
    gather_sequence,
    logits_gradient,
    reduce_hidden_gradient,
    statistics,
    statistics_dtype,
)


def linear_policy_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    fields: TokenFields,
    spec: TokenLossSpec,
    main_grad: Tensor | None,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    if wanted and torch._C._current_graph_task_id() != -1:
        # Inside a backward pass only activation checkpointing runs forwards with gradients.
        raise RuntimeError("linear_policy_loss: leave it outside of activation checkpointing; it would add twice")
    head = _HeadPass(weight_VD, fields, spec, main_grad, vocab_size, tp_group)
    with torch.no_grad():
        whole_TD = gather_sequence(hidden_TD.detach(), tp_group, sequence_parallel)
        loss, metrics = head.run(whole_TD, wanted)
    if not wanted:
        return loss, metrics
    hidden_grad_TD = reduce_hidden_gradient(head.hidden_grad_TD, tp_group, sequence_parallel).to(hidden_TD.dtype)
    weight_grad_VD = None
    if main_grad is None:
        assert head.weight_grad_VD is not None
        weight_grad_VD = head.weight_grad_VD.to(weight_VD.dtype)
    return _Attach.apply(hidden_TD, weight_VD, loss, hidden_grad_TD, weight_grad_VD), metrics


class _HeadPass:
    """One pass over the rows: loss and metrics, and with `gradients` dHidden and dWeight as well."""

    def __init__(
        self,
        weight_VD: Tensor,
        fields: TokenFields,
        spec: TokenLossSpec,
        main_grad: Tensor | None,
        vocab_size: int | None,
        group: ProcessGroup | None,
    ) -> None:
        self.dtype = statistics_dtype(weight_VD)
        self.shard = VocabShard.of(weight_VD, vocab_size, group, self.dtype)
        self.fields, self.spec = fields, spec
        self.weight_VD, self.main_grad = weight_VD, main_grad

    def run(self, hidden_TD: Tensor, gradients: bool) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = hidden_TD.shape[0]
        loss = hidden_TD.new_zeros((), dtype=self.dtype)
        metrics: dict[str, Tensor] = {}
        if gradients:
            self.hidden_grad_TD = torch.empty_like(hidden_TD, dtype=self.dtype)
            self.weight_grad_VD = self.main_grad
            if self.weight_grad_VD is None:
                self.weight_grad_VD = torch.zeros_like(self.weight_VD, dtype=self.dtype)
        # An empty micro-batch still passes once, so that the metrics have all their names.
        for start in range(0, max(tokens, 1), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, tokens)
            part, figures = self._chunk(hidden_TD[start:stop], self.fields.rows(start, stop), start, gradients)
            loss = loss + part
            for name, value in figures.items():
                known = metrics.get(name)
                combine = torch.maximum if name.startswith("max/") else torch.add
                metrics[name] = value if known is None else combine(known, value)
        return loss, metrics

    def _chunk(
        self, hidden_TD: Tensor, fields: TokenFields, start: int, gradients: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        temperature_T = fields.temperature_T
        logits_TV = self.shard.logits(hidden_TD, temperature_T)
        logprob_T, entropy_T, lse_T = statistics(logits_TV, fields.target_T, self.shard)
        if not gradients:
            return policy_loss(logprob_T, entropy_T, fields, self.spec)
        with torch.enable_grad():
            logprob_T.requires_grad_()
            loss, figures = policy_loss(logprob_T, entropy_T, fields, self.spec)
            if loss.requires_grad:
                (grad_T,) = torch.autograd.grad(loss, logprob_T)
            else:  # no component has a weight
                grad_T = torch.zeros_like(logprob_T)
        grad_TV = logits_gradient(logits_TV, lse_T, fields.target_T, self.shard, temperature_T, grad_T)
        self.hidden_grad_TD[start : start + hidden_TD.shape[0]] = grad_TV @ self.shard.weight_VD
        assert self.weight_grad_VD is not None
        self.weight_grad_VD[: grad_TV.shape[1]] += grad_TV.t() @ hidden_TD.to(grad_TV.dtype)
        return loss.detach(), figures


class _Attach(torch.autograd.Function):
    """Hands the loss on, and gives the finished gradients back when autograd comes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        loss: Tensor,
        hidden_grad_TD: Tensor,
        weight_grad_VD: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight_VD, hidden_grad_TD, weight_grad_VD)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        weight_VD, hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        if weight_grad_VD is None:
            if upstream.item() != 1.0:
                raise RuntimeError(
                    f"linear_policy_loss: expected an upstream gradient of 1 with main_grad, got {upstream.item()}; "
                    "loss scaling and division by micro-batches must be off"
                )
            return hidden_grad_TD, weight_VD.new_zeros(()).expand_as(weight_VD), None, None, None
        upstream = upstream.to(hidden_grad_TD.dtype)
        return hidden_grad_TD * upstream, weight_grad_VD * upstream.to(weight_grad_VD.dtype), None, None, None
