"""`linear_logprob` by chunks of rows, made again in the backward pass: four products in all.

Shape legend: T tokens, R rows of a chunk, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.chunked.glue import Glue, RowTerms, finish
from aapa.kernels.chunked.gradients import Gradients
from aapa.kernels.chunked.plan import Plan, gradient_rows
from aapa.kernels.chunked.shard import Shard
from aapa.kernels.chunked.tiles import Tiles
from aapa.kernels.reference.attach import first_order
from aapa.kernels.reference.vocab_parallel import statistics_dtype


@dataclass(frozen=True)
class _Layout:
    glue: Glue
    vocab_size: int | None
    group: ProcessGroup | None
    sequence_parallel: bool


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, scale_T: Tensor | None, layout: _Layout
    ) -> tuple[Tensor, Tensor]:
        shard = Shard(hidden_TD, weight_VD, layout.vocab_size, layout.group)
        whole_TD = shard.whole_rows(hidden_TD, layout.sequence_parallel)
        plan = Plan.of("fast", len(whole_TD), shard.rows, whole_TD.new_empty(0, dtype=shard.dtype))
        logprob_T, entropy_T, lse_T = statistics(
            layout.glue, shard, plan, whole_TD.to(shard.operand), target_T, scale_T
        )
        ctx.save_for_backward(whole_TD, weight_VD, target_T, scale_T, lse_T, entropy_T)
        ctx.layout, ctx.dtype = layout, hidden_TD.dtype
        ctx.set_materialize_grads(False)
        return logprob_T, entropy_T.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, logprob_grad_T: Tensor | None, entropy_grad_T: Tensor | None) -> Any:
        whole_TD, weight_VD, target_T, scale_T, lse_T, entropy_T = ctx.saved_tensors
        layout: _Layout = ctx.layout
        shard = Shard(whole_TD, weight_VD, layout.vocab_size, layout.group)
        logprob_grad_T = torch.zeros_like(lse_T) if logprob_grad_T is None else logprob_grad_T
        rows_R = gradient_rows(logprob_grad_T, entropy_grad_T)
        terms = RowTerms(target_T, scale_T, lse_T, entropy_T, logprob_grad_T, entropy_grad_T)
        hidden_RD = whole_TD if rows_R is None else whole_TD[rows_R]
        plan = Plan.of("fast", len(hidden_RD), shard.rows, lse_T)
        needed: tuple[bool, bool] = ctx.needs_input_grad[:2]
        gradients = Gradients(
            shard, len(whole_TD), rows_R, *needed, None, layout.sequence_parallel, shard.count(plan.columns)
        )
        make_again(layout.glue, shard, plan, hidden_RD.to(shard.operand), terms.at(rows_R), gradients)
        hidden_grad = gradients.hidden_gradient()
        weight_grad = gradients.weight_gradient()
        return (
            None if hidden_grad is None else hidden_grad.to(ctx.dtype),
            None if weight_grad is None else weight_grad.to(weight_VD.dtype),
            None,
            None,
            None,
        )


def statistics(
    glue: Glue, shard: Shard, plan: Plan, hidden_TD: Tensor, target_T: Tensor, scale_T: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-prob, entropy, log-sum-exp) of all rows, [T] each; logits live for one block only."""
    stats_4T = hidden_TD.new_empty(4, len(hidden_TD), dtype=shard.dtype)
    tiles = Tiles(shard, plan, len(hidden_TD))
    for rows in plan.chunks(len(hidden_TD)):
        scale_R = None if scale_T is None else scale_T[rows]
        stats_4T[:, rows] = tiles.statistics(glue, hidden_TD[rows], target_T[rows], scale_R)
    return finish(stats_4T)


def make_again(glue: Glue, shard: Shard, plan: Plan, hidden_RD: Tensor, terms: RowTerms, gradients: Gradients) -> None:
    """Logits of rows again, and with them dHidden and dWeight."""
    tiles = Tiles(shard, plan, len(hidden_RD))
    for rows in plan.chunks(len(hidden_RD)):
        part = terms.at(rows)
        gradients.begin(rows)
        for block in shard.blocks(plan.columns):
            logits_RV = tiles.logits(hidden_RD[rows], block)
            grad_RV = glue.gradient(logits_RV, block.columns(part.target_R), part, shard.operand)
            gradients.add(block, grad_RV, hidden_RD[rows])
        gradients.end()


def linear_logprob(
    glue: Glue,
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    temperature_T: Tensor | None,
    entropy: bool,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
) -> tuple[Tensor, Tensor | None]:
    """`aapa.kernels.linear_logprob` with some glue."""
    scale_T = None if temperature_T is None else temperature_T.detach().to(statistics_dtype(hidden_TD)).reciprocal()
    layout = _Layout(glue, vocab_size, tp_group, sequence_parallel)
    logprob_T, entropy_T = _LinearLogprob.apply(hidden_TD, weight_VD, target_T, scale_T, layout)
    return logprob_T, entropy_T if entropy else None
