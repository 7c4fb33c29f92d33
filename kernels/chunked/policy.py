"""`linear_policy_loss` by chunks: gradients are made in the forward pass, with three products per chunk, or four.

Lean mode is four products with another plan: all rows are one chunk and the vocabulary is cut into blocks, so dHidden
is added up in float32 over blocks, and each part of dWeight is written once.

Shape legend: T tokens, R rows that are worked on or those of a chunk, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.chunked.glue import Glue, RowTerms, finish
from aapa.kernels.chunked.gradients import Gradients
from aapa.kernels.chunked.logprob import make_again, statistics
from aapa.kernels.chunked.plan import Plan, gradient_rows
from aapa.kernels.chunked.shard import Shard
from aapa.kernels.chunked.tiles import Tiles, move_up, places_after_move
from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.attach import attach, refuse_recomputation
from aapa.kernels.reference.policy_loss import add_metrics, needed_rows

Metrics = dict[str, Tensor]


def linear_policy_loss(
    glue: Glue,
    hidden_TD: Tensor,
    weight_VD: Tensor,
    fields: TokenFields,
    spec: TokenLossSpec,
    main_grad: Tensor | None,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
    mode: Literal["fast", "lean"],
) -> tuple[Tensor, Metrics]:
    """`aapa.kernels.linear_policy_loss` with some glue."""
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    if wanted:
        refuse_recomputation("linear_policy_loss")
    shard = Shard(hidden_TD, weight_VD, vocab_size, tp_group)
    with torch.no_grad():
        whole_TD = shard.whole_rows(hidden_TD.detach(), sequence_parallel)
        rows_R, fields = needed_rows(fields, spec)
        hidden_RD = whole_TD if rows_R is None else whole_TD[rows_R]
        plan = Plan.of(mode, len(hidden_RD), shard.rows, hidden_RD.new_empty(0, dtype=shard.dtype))
        gradients = None
        if wanted:
            needed = hidden_TD.requires_grad, weight_VD.requires_grad
            blocks, lean = shard.count(plan.columns), mode == "lean"
            gradients = Gradients(
                shard, len(whole_TD), rows_R, *needed, main_grad, sequence_parallel, blocks, one_chunk=lean
            )
        head = HeadPass(glue, shard, plan, fields, spec, gradients)
        run = head.three_products if spec.separable and mode == "fast" else head.four_products
        loss, metrics = run(hidden_RD.to(shard.operand))
        if gradients is None:
            return loss, metrics
        hidden_grad = gradients.hidden_gradient()
        weight_grad = gradients.weight_gradient()
    return (
        attach(
            hidden_TD,
            weight_VD,
            loss,
            None if hidden_grad is None else hidden_grad.to(hidden_TD.dtype),
            None if weight_grad is None else weight_grad.to(weight_VD.dtype),
            main_grad is not None,
        ),
        metrics,
    )


class HeadPass:
    """One pass over the rows that matter: loss and metrics, and gradients if there is a place for them."""

    def __init__(
        self,
        glue: Glue,
        shard: Shard,
        plan: Plan,
        fields: TokenFields,
        spec: TokenLossSpec,
        gradients: Gradients | None,
    ) -> None:
        self.glue, self.shard, self.plan = glue, shard, plan
        self.fields, self.spec, self.gradients = fields, spec, gradients
        temperature = fields.temperature_T
        self.scale_R = None if temperature is None else temperature.to(shard.dtype).reciprocal()

    def three_products(self, hidden_RD: Tensor) -> tuple[Tensor, Metrics]:
        """A token's gradient follows from that token alone: loss and gradient while the chunk's logits are there."""
        nothing = hidden_RD.new_empty(0, dtype=self.shard.dtype)
        if not len(hidden_RD):
            return self._loss_of_nothing(nothing)
        loss = nothing.new_zeros(())
        metrics: Metrics = {}
        tiles = Tiles(self.shard, self.plan, len(hidden_RD))
        for rows in self.plan.chunks(len(hidden_RD)):
            fields = self.fields.rows(rows)
            scale_R = None if self.scale_R is None else self.scale_R[rows]
            stats_4R = tiles.statistics(self.glue, hidden_RD[rows], fields.target_T, scale_R)
            logprob_R, entropy_R, lse_R = finish(stats_4R)
            part, figures, grads = self.glue.loss(logprob_R, entropy_R, fields, self.spec, self.gradients is not None)
            loss = loss + part
            add_metrics(metrics, figures)
            if grads is not None:
                terms = RowTerms(fields.target_T, scale_R, lse_R, entropy_R, *grads)
                self._chunk_gradient(tiles, terms, hidden_RD, rows)
        return loss, metrics

    def _chunk_gradient(self, tiles: Tiles, terms: RowTerms, hidden_RD: Tensor, rows: slice) -> None:
        """From the chunk's logits, which lie in `tiles`: fast mode has the whole vocabulary in one block."""
        assert self.gradients is not None and self.plan.columns is None
        chosen = gradient_rows(terms.logprob_grad_R, terms.entropy_grad_R)
        order = None if chosen is None else places_after_move(chosen)
        place: slice | Tensor = rows if order is None else order + rows.start
        terms, hidden_RD = terms.at(order), hidden_RD[place]
        block = self.shard.whole
        logits_RV = tiles.kept(rows.stop - rows.start, block)
        if order is not None:
            logits_RV = move_up(logits_RV, order)
        self.gradients.begin(place)
        grad_RV = self.glue.gradient(logits_RV, block.columns(terms.target_R), terms, self.shard.operand)
        self.gradients.add(block, grad_RV, hidden_RD)
        self.gradients.end()

    def four_products(self, hidden_RD: Tensor) -> tuple[Tensor, Metrics]:
        """Statistics of all rows, then the loss over all of them, then logits again where there is a gradient."""
        found = statistics(self.glue, self.shard, self.plan, hidden_RD, self.fields.target_T, self.scale_R)
        logprob_R, entropy_R, lse_R = found
        loss, metrics, grads = self._loss(logprob_R, entropy_R)
        if self.gradients is not None and grads is not None:
            hidden_RD, terms = self._with_gradient(hidden_RD, lse_R, entropy_R, grads)
            make_again(self.glue, self.shard, self.plan, hidden_RD, terms, self.gradients)
        return loss, metrics

    def _with_gradient(
        self,
        hidden_RD: Tensor,
        lse_R: Tensor,
        entropy_R: Tensor,
        grads: tuple[Tensor, Tensor | None],
    ) -> tuple[Tensor, RowTerms]:
        """Hidden states and terms of the rows that have a gradient, which are those worked on from here on."""
        assert self.gradients is not None
        terms = RowTerms(self.fields.target_T, self.scale_R, lse_R, entropy_R, *grads)
        chosen = gradient_rows(*grads)
        self.gradients.restrict(chosen)
        return hidden_RD if chosen is None else hidden_RD[chosen], terms.at(chosen)

    def _loss(
        self, logprob_R: Tensor, entropy_R: Tensor
    ) -> tuple[Tensor, Metrics, tuple[Tensor, Tensor | None] | None]:
        return self.glue.loss(logprob_R, entropy_R, self.fields, self.spec, self.gradients is not None)

    def _loss_of_nothing(self, like: Tensor) -> tuple[Tensor, Metrics]:
        """No row matters: zeros, under all the names that metrics have."""
        loss, metrics, _ = self._loss(like, like)
        return loss, metrics
