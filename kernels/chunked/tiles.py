"""Logits of a chunk, block by block of the vocabulary, in memory that is used again.

Shape legend: R rows of a chunk, D hidden size, V columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.chunked.glue import EAGER_ROWS, Glue, merge
from aapa.kernels.chunked.plan import Plan
from aapa.kernels.chunked.products import product
from aapa.kernels.chunked.shard import Shard, VocabBlock


class Tiles:
    """Memory for the logits of a chunk, or of one block of it: a block overwrites the one before.

    Args:
        rows: of all chunks.
    """

    def __init__(self, shard: Shard, plan: Plan, rows: int) -> None:
        width = shard.real if plan.columns is None else min(plan.columns, shard.real)
        self.shard, self.plan = shard, plan
        self.memory = shard.weight_VD.new_empty(min(plan.rows, rows) * width, dtype=shard.dtype)

    def logits(self, hidden_RD: Tensor, block: VocabBlock) -> Tensor:
        """Logits of a block, [R, V] and contiguous."""
        return product(hidden_RD, block.weight_VD.t(), self.kept(len(hidden_RD), block))

    def kept(self, rows: int, block: VocabBlock) -> Tensor:
        """The place of a block of a chunk with so many rows."""
        columns = block.weight_VD.shape[0]
        return self.memory[: rows * columns].view(rows, columns)

    def statistics(self, glue: Glue, hidden_RD: Tensor, target_R: Tensor, scale_R: Tensor | None) -> Tensor:
        """[4, R] statistics of a chunk over the whole vocabulary; the logits of the last block stay in their place."""
        parts = [
            glue.statistics(self.logits(hidden_RD, block), block.columns(target_R), scale_R)
            for block in self.shard.blocks(self.plan.columns)
        ]
        return self.shard.merged(parts[0] if len(parts) == 1 else merge(torch.stack(parts)), target_R)


def places_after_move(chosen_R: Tensor) -> Tensor:
    """Which row lies at each of the first places after `move_up`; chosen rows among the first stay where they are."""
    count = len(chosen_R)
    order_R = torch.arange(count, device=chosen_R.device)
    free_R = torch.ones_like(order_R, dtype=torch.bool)
    free_R[chosen_R[chosen_R < count]] = False
    order_R[free_R] = chosen_R[chosen_R >= count]
    return order_R


def move_up(logits_RV: Tensor, order_R: Tensor) -> Tensor:
    """The rows `places_after_move` names, moved to the top in place: no second chunk is needed."""
    hole_R = (order_R >= len(order_R)).nonzero()[:, 0]
    for holes in hole_R.split(EAGER_ROWS):
        logits_RV[holes] = logits_RV[order_R[holes]]
    return logits_RV[: len(order_R)]
