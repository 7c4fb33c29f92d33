"""Where dHidden and dWeight go while the head works through its chunks.

Shape legend: T tokens, R rows that are worked on, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.chunked.products import add_product, product
from aapa.kernels.chunked.shard import Shard, VocabBlock


class Gradients:
    """dHidden of R rows, and dWeight.

    Args:
        tokens: of the micro-batch.
        rows_R: [R] int64, places of the rows among the tokens; None where all tokens are worked on.
        hidden, weight: whether each is needed; a `main_grad` needs the weight's.
        main_grad: [V_local, D], added to in place; None makes an accumulator of its own.
        by_blocks: whether blocks of the vocabulary are worked through, each with all rows (lean mode), and not chunks
            of rows with the whole vocabulary: then dHidden is a sum over blocks, and dWeight is written once.
    """

    def __init__(
        self,
        shard: Shard,
        tokens: int,
        rows_R: Tensor | None,
        hidden: bool,
        weight: bool,
        main_grad: Tensor | None,
        sequence_parallel: bool,
        by_blocks: bool = False,
    ) -> None:
        self.shard, self.main_grad, self.sequence_parallel = shard, main_grad, sequence_parallel
        self.by_blocks = by_blocks
        self.tokens, self.rows_R = tokens, rows_R
        rows, like = tokens if rows_R is None else len(rows_R), shard.weight_VD
        # What is added up later, over blocks or over ranks, stays in the dtype of the statistics.
        summed = by_blocks or shard.group is not None
        self.hidden_RD = (
            like.new_zeros(rows, like.shape[1], dtype=shard.dtype if summed else shard.operand) if hidden else None
        )
        self.weight_VD: Tensor | None = None
        # Whether dWeight holds something to add to, and whether anything was put there.
        self.written = self.touched = False
        if main_grad is not None and main_grad.dtype == shard.dtype:
            self.weight_VD, self.written = main_grad, True
        elif weight or main_grad is not None:
            self.weight_VD = torch.empty_like(
                like, dtype=like.dtype if by_blocks and main_grad is None else shard.dtype
            )
            self.weight_VD[shard.real :].zero_()

    def add(self, block: VocabBlock, grad_RV: Tensor, hidden_RD: Tensor, rows: slice | Tensor) -> None:
        """The two products of a chunk; dHidden's sum over ranks runs beside the second one.

        Args:
            grad_RV: gradient of the logits before the temperature, in the dtype of the products.
            hidden_RD: hidden states of its rows, likewise.
            rows: their places among the R rows.
        """
        if not grad_RV.shape[0]:
            return
        part_RD, work = None, None
        if self.hidden_RD is not None:
            if self.by_blocks:
                assert isinstance(rows, slice)
                add_product(self.hidden_RD[rows], grad_RV, block.weight_VD)
            else:
                part_RD = self.hidden_RD[rows]  # a view of a slice, other memory for indices
                product(grad_RV, block.weight_VD, part_RD)
                work = None if self.sequence_parallel else self.shard.start_sum(part_RD)
        if self.weight_VD is not None:
            self._add_weight(block, grad_RV, hidden_RD)
        if work is not None:
            work.wait()
        if part_RD is not None and self.hidden_RD is not None and isinstance(rows, Tensor):
            self.hidden_RD[rows] = part_RD

    def _add_weight(self, block: VocabBlock, grad_RV: Tensor, hidden_RD: Tensor) -> None:
        assert self.weight_VD is not None
        total_VD = self.weight_VD[block.begin : block.begin + grad_RV.shape[1]]
        if self.written:
            add_product(total_VD, grad_RV.t(), hidden_RD)
        elif total_VD.dtype in (self.shard.operand, self.shard.dtype):
            product(grad_RV.t(), hidden_RD, total_VD)
        else:
            total_VD.copy_(grad_RV.t() @ hidden_RD)
        # Chunks of rows meet the same dWeight again; blocks of the vocabulary each write their own part, once.
        self.written = self.written or not self.by_blocks
        self.touched = True

    def restrict(self, chosen_R: Tensor | None) -> None:
        """From now on rows are counted among these; the others have no gradient. To be called before `add`."""
        if chosen_R is None:
            return
        self.rows_R = chosen_R if self.rows_R is None else self.rows_R[chosen_R]
        if self.hidden_RD is not None:
            self.hidden_RD = self.hidden_RD[: len(chosen_R)]

    def hidden_gradient(self) -> Tensor | None:
        """dHidden of all tokens (this rank's, under sequence parallelism); 0 at those that were left out."""
        grad_TD = self.hidden_RD
        if grad_TD is None:
            return None
        if self.by_blocks and not self.sequence_parallel:
            work = self.shard.start_sum(grad_TD)
            if work is not None:
                work.wait()
        if self.rows_R is not None:
            grad_TD = grad_TD.new_zeros(self.tokens, grad_TD.shape[1]).index_copy_(0, self.rows_R, grad_TD)
        return self.shard.own_rows(grad_TD, self.sequence_parallel)

    def weight_gradient(self) -> Tensor | None:
        """dWeight that autograd shall return; None where it is in `main_grad`, or nobody needs it."""
        if self.weight_VD is None or self.weight_VD is self.main_grad:
            return None
        if not self.touched:
            self.weight_VD.zero_()
        if self.main_grad is None:
            return self.weight_VD
        self.main_grad.add_(self.weight_VD)
        return None
