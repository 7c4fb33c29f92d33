"""Reference of `linear_policy_loss`: gradients made in the forward pass, three GEMMs per chunk of rows, or four.

Shape legend: T tokens, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.attach import attach, refuse_recomputation
from aapa.kernels.reference.policy_loss import add_metrics, loss_and_slopes, needed_rows
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
    mode: Literal["fast", "lean"] = "fast",
) -> tuple[Tensor, dict[str, Tensor]]:
    # Both modes compute the same, and the reference has one way.
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    if wanted:
        refuse_recomputation("linear_policy_loss")
    with torch.no_grad():
        whole_TD = gather_sequence(hidden_TD.detach(), tp_group, sequence_parallel)
        rows_R, fields = needed_rows(fields, spec)
        head = _HeadPass(weight_VD, fields, spec, main_grad, vocab_size, tp_group)
        loss, metrics = head.run(whole_TD if rows_R is None else whole_TD[rows_R], wanted)
    if not wanted:
        return loss, metrics
    hidden_grad_TD = head.hidden_grad_TD
    if rows_R is not None:
        hidden_grad_TD = torch.zeros_like(whole_TD, dtype=head.dtype).index_copy_(0, rows_R, hidden_grad_TD)
    hidden_grad_TD = reduce_hidden_gradient(hidden_grad_TD, tp_group, sequence_parallel).to(hidden_TD.dtype)
    weight_grad_VD = None
    if main_grad is None:
        assert head.weight_grad_VD is not None
        weight_grad_VD = head.weight_grad_VD.to(weight_VD.dtype)
    return attach(hidden_TD, weight_VD, loss, hidden_grad_TD, weight_grad_VD, main_grad is not None), metrics


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
        if gradients:
            self.hidden_grad_TD = torch.empty_like(hidden_TD, dtype=self.dtype)
            self.weight_grad_VD = self.main_grad
            if self.weight_grad_VD is None:
                self.weight_grad_VD = torch.zeros_like(self.weight_VD, dtype=self.dtype)
        return (
            self._three_gemms(hidden_TD, gradients) if self.spec.separable else self._four_gemms(hidden_TD, gradients)
        )

    def _three_gemms(self, hidden_TD: Tensor, gradients: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """A token's gradient follows from that token alone: loss and gradient while the chunk's logits are there."""
        loss = hidden_TD.new_zeros((), dtype=self.dtype)
        metrics: dict[str, Tensor] = {}
        for rows in _chunks(hidden_TD.shape[0]):
            fields = self.fields.rows(rows)
            logits_TV = self.shard.logits(hidden_TD[rows], fields.temperature_T)
            logprob_T, entropy_T, lse_T = statistics(logits_TV, fields.target_T, self.shard)
            part, figures, grads = loss_and_slopes(logprob_T, entropy_T, fields, self.spec, gradients)
            loss = loss + part
            add_metrics(metrics, figures)
            if grads is not None:
                self._backward(hidden_TD, rows, logits_TV, lse_T, entropy_T, fields, grads)
        return loss, metrics

    def _four_gemms(self, hidden_TD: Tensor, gradients: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Statistics of all rows first, then the loss over whole sequences, then logits again for the gradient."""
        logprob_T, entropy_T, lse_T = torch.empty(3, hidden_TD.shape[0], dtype=self.dtype, device=hidden_TD.device)
        for rows in _chunks(hidden_TD.shape[0]):
            fields = self.fields.rows(rows)
            logits_TV = self.shard.logits(hidden_TD[rows], fields.temperature_T)
            logprob_T[rows], entropy_T[rows], lse_T[rows] = statistics(logits_TV, fields.target_T, self.shard)
        loss, metrics, grads = loss_and_slopes(logprob_T, entropy_T, self.fields, self.spec, gradients)
        if grads is not None:
            for rows in _chunks(hidden_TD.shape[0]):
                fields = self.fields.rows(rows)
                logits_TV = self.shard.logits(hidden_TD[rows], fields.temperature_T)
                parts = grads[0][rows], None if grads[1] is None else grads[1][rows]
                self._backward(hidden_TD, rows, logits_TV, lse_T[rows], entropy_T[rows], fields, parts)
        return loss, metrics

    def _backward(
        self,
        hidden_TD: Tensor,
        rows: slice,
        logits_TV: Tensor,
        lse_T: Tensor,
        entropy_T: Tensor,
        fields: TokenFields,
        grads: tuple[Tensor, Tensor | None],
    ) -> None:
        """dHidden and dWeight of the chunk `rows`; overwrites its logits."""
        logprob_grad_T, entropy_grad_T = grads
        grad_TV = logits_gradient(
            logits_TV,
            lse_T,
            fields.target_T,
            self.shard,
            fields.temperature_T,
            logprob_grad_T,
            entropy_grad_T,
            None if entropy_grad_T is None else entropy_T,
        )
        self.hidden_grad_TD[rows] = grad_TV @ self.shard.weight_VD
        assert self.weight_grad_VD is not None
        self.weight_grad_VD[: grad_TV.shape[1]] += grad_TV.t() @ hidden_TD[rows].to(grad_TV.dtype)


def _chunks(tokens: int) -> Iterator[slice]:
    """Rows in chunks; one empty chunk where there are none, so that the metrics have all their names."""
    for start in range(0, max(tokens, 1), CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, tokens))
