"""`linear_policy_loss` by chunks: gradients are made in the forward pass, with three products per chunk, or four.

Shape legend: T tokens, R rows that are worked on or those of a chunk, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.chunked.glue import EAGER_ROWS, Glue, RowTerms, finish, merge
from aapa.kernels.chunked.gradients import Gradients
from aapa.kernels.chunked.logprob import make_again, statistics
from aapa.kernels.chunked.plan import block_columns, gradient_rows, needed_rows, row_chunks
from aapa.kernels.chunked.products import product
from aapa.kernels.chunked.shard import Shard, VocabBlock
from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.attach import attach, refuse_recomputation

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
        rows_R = needed_rows(fields, spec)
        hidden_RD = whole_TD if rows_R is None else whole_TD[rows_R]
        gradients = None
        if wanted:
            needed = hidden_TD.requires_grad, weight_VD.requires_grad
            gradients = Gradients(
                shard, len(whole_TD), rows_R, *needed, main_grad, sequence_parallel, by_blocks=mode == "lean"
            )
        head = HeadPass(glue, shard, fields if rows_R is None else fields.rows(rows_R), spec, gradients)
        run = head.lean if mode == "lean" else head.three_products if spec.separable else head.four_products
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
        self, glue: Glue, shard: Shard, fields: TokenFields, spec: TokenLossSpec, gradients: Gradients | None
    ) -> None:
        self.glue, self.shard, self.fields, self.spec, self.gradients = glue, shard, fields, spec, gradients
        temperature = fields.temperature_T
        self.scale_R = None if temperature is None else temperature.to(shard.dtype).reciprocal()

    def three_products(self, hidden_RD: Tensor) -> tuple[Tensor, Metrics]:
        """A token's gradient follows from that token alone: loss and gradient while the chunk's logits are there."""
        block = self.shard.block()
        like = hidden_RD.new_empty(0, dtype=self.shard.dtype)
        if not hidden_RD.shape[0]:
            return self._loss_of_nothing(like)
        loss, logits = like.new_zeros(()), None
        metrics: Metrics = {}
        for rows in row_chunks(hidden_RD.shape[0], self.shard.rows, like):
            if logits is None:
                logits = like.new_empty(rows.stop - rows.start, self.shard.real)
            logits_RV = product(hidden_RD[rows], block.weight_VD.t(), logits[: rows.stop - rows.start])
            fields = self.fields.rows(rows)
            scale = None if self.scale_R is None else self.scale_R[rows]
            column_R = block.columns(fields.target_T)
            stats_4R = self.shard.merged(self.glue.statistics(logits_RV, column_R, scale))
            logprob_R, entropy_R, lse_R = finish(stats_4R)
            part, figures, grads = self.glue.loss(logprob_R, entropy_R, fields, self.spec, self.gradients is not None)
            loss = loss + part
            _add_metrics(metrics, figures)
            if grads is not None:
                terms = RowTerms(fields.target_T, scale, lse_R, entropy_R, *grads)
                self._chunk_gradient(block, logits_RV, terms, hidden_RD, rows)
        return loss, metrics

    def _chunk_gradient(
        self, block: VocabBlock, logits_RV: Tensor, terms: RowTerms, hidden_RD: Tensor, rows: slice
    ) -> None:
        assert self.gradients is not None
        chosen = gradient_rows(terms.logprob_grad_R, terms.entropy_grad_R)
        place: slice | Tensor = rows
        if chosen is not None:
            chosen = _move_up(logits_RV, chosen)
            terms, logits_RV, place = terms.at(chosen), logits_RV[: len(chosen)], chosen + rows.start
        grad_RV = self.glue.gradient(logits_RV, block.columns(terms.target_R), terms, self.shard.operand)
        self.gradients.add(block, grad_RV, hidden_RD[place], place)

    def four_products(self, hidden_RD: Tensor) -> tuple[Tensor, Metrics]:
        """Statistics of all rows, then the loss over all of them, then logits again where there is a gradient."""
        found = statistics(self.glue, self.shard, hidden_RD, self.fields.target_T, self.scale_R)
        logprob_R, entropy_R, lse_R = found
        loss, metrics, grads = self._loss(logprob_R, entropy_R)
        if self.gradients is not None and grads is not None:
            hidden_RD, terms = self._with_gradient(hidden_RD, lse_R, entropy_R, grads)
            make_again(self.glue, self.shard, hidden_RD, terms, self.gradients)
        return loss, metrics

    def lean(self, hidden_RD: Tensor) -> tuple[Tensor, Metrics]:
        """As `four_products`, but by blocks of the vocabulary, each with all rows: no chunk spans the vocabulary.

        dHidden is added up in float32 over the blocks, dWeight of a block is written once.
        """
        like = hidden_RD.new_empty(0, dtype=self.shard.dtype)
        target_R, scale_R, rows = self.fields.target_T, self.scale_R, hidden_RD.shape[0]
        if not rows:
            return self._loss_of_nothing(like)
        size = min(block_columns(rows, like), max(1, self.shard.real))
        logits = like.new_empty(rows * size)
        stats_4R: Tensor | None = None
        for block in self.shard.blocks(size):
            logits_RV = self._block_logits(hidden_RD, block.weight_VD, logits)
            part_4R = self.glue.statistics(logits_RV, block.columns(target_R), scale_R)
            stats_4R = part_4R if stats_4R is None else merge(torch.stack([stats_4R, part_4R]))
        assert stats_4R is not None
        logprob_R, entropy_R, lse_R = finish(self.shard.merged(stats_4R))
        loss, metrics, grads = self._loss(logprob_R, entropy_R)
        if self.gradients is not None and grads is not None:
            hidden_RD, terms = self._with_gradient(hidden_RD, lse_R, entropy_R, grads)
            for block in self.shard.blocks(size):
                logits_RV = self._block_logits(hidden_RD, block.weight_VD, logits)
                grad_RV = self.glue.gradient(logits_RV, block.columns(terms.target_R), terms, self.shard.operand)
                self.gradients.add(block, grad_RV, hidden_RD, slice(0, len(hidden_RD)))
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

    def _block_logits(self, hidden_RD: Tensor, weight_VD: Tensor, memory: Tensor) -> Tensor:
        rows, columns = hidden_RD.shape[0], weight_VD.shape[0]
        return product(hidden_RD, weight_VD.t(), memory[: rows * columns].view(rows, columns))

    def _loss(
        self, logprob_R: Tensor, entropy_R: Tensor
    ) -> tuple[Tensor, Metrics, tuple[Tensor, Tensor | None] | None]:
        return self.glue.loss(logprob_R, entropy_R, self.fields, self.spec, self.gradients is not None)

    def _loss_of_nothing(self, like: Tensor) -> tuple[Tensor, Metrics]:
        """No row matters: zeros, under all the names that metrics have."""
        loss, metrics, _ = self._loss(like, like)
        return loss, metrics


def _add_metrics(metrics: Metrics, figures: Metrics) -> None:
    for name, value in figures.items():
        known = metrics.get(name)
        combine = torch.maximum if name.startswith("max/") else torch.add
        metrics[name] = value if known is None else combine(known, value)


def _move_up(logits_RV: Tensor, chosen_R: Tensor) -> Tensor:
    """Move the chosen rows to the top, in place; which row lies at each place then.

    Only those beyond the new end are moved, into the places of rows that are not chosen: no second chunk is needed.
    """
    count = len(chosen_R)
    order_R = torch.arange(count, device=logits_RV.device)
    free_R = torch.ones_like(order_R, dtype=torch.bool)
    free_R[chosen_R[chosen_R < count]] = False
    holes_R, moved_R = free_R.nonzero()[:, 0], chosen_R[chosen_R >= count]
    order_R[holes_R] = moved_R
    for hole_R, row_R in zip(holes_R.split(EAGER_ROWS), moved_R.split(EAGER_ROWS), strict=True):
        logits_RV[hole_R] = logits_RV[row_R]
    return order_R
