"""Where dHidden and dWeight go while the head works through its chunks.

Shape legend: T tokens, R rows that are worked on, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from aapa.kernels.chunked.products import add_product, product
from aapa.kernels.chunked.shard import Shard, VocabBlock


class Gradients:
    """dHidden of R rows, and dWeight.

    Rows come in chunks, and the columns of a chunk in blocks of the vocabulary: `begin`, `add` for each block, `end`.

    Args:
        tokens: of the micro-batch.
        rows_R: [R] int64, places of the rows among the tokens; None where all tokens are worked on.
        hidden, weight: whether each is needed; a `main_grad` needs the weight's.
        main_grad: [V_local, D], added to in place; None makes an accumulator of its own.
        blocks: of a chunk.
        one_chunk: all rows come at once (lean mode), so that each part of dWeight is written once.
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
        blocks: int = 1,
        one_chunk: bool = False,
    ) -> None:
        self.shard, self.main_grad, self.sequence_parallel = shard, main_grad, sequence_parallel
        self.tokens, self.rows_R, self.blocks = tokens, rows_R, blocks
        rows, like = tokens if rows_R is None else len(rows_R), shard.weight_VD
        # What is added up over blocks or over ranks stays in the dtype of the statistics.
        dtype = shard.dtype if blocks > 1 or shard.group is not None else shard.operand
        self.hidden_RD = like.new_zeros(rows, like.shape[1], dtype=dtype) if hidden else None
        self.weight_VD: Tensor | None = None
        # Whether dWeight holds something to add to, and whether anything was put there.
        self.written = self.touched = False
        if main_grad is not None and main_grad.dtype == shard.dtype:
            self.weight_VD, self.written = main_grad, True
        elif weight or main_grad is not None:
            dtype = like.dtype if one_chunk and main_grad is None else shard.dtype
            self.weight_VD = torch.empty_like(like, dtype=dtype)
            self.weight_VD[shard.real :].zero_()

    def begin(self, rows: slice | Tensor) -> None:
        """A chunk: the places of its rows among the R rows."""
        self.rows, self.seen = rows, 0
        self.work: dist.Work | None = None
        # A view of a slice; other memory for indices, which `end` puts in place.
        self.part_RD = None if self.hidden_RD is None else self.hidden_RD[rows]

    def add(self, block: VocabBlock, grad_RV: Tensor, hidden_RD: Tensor) -> None:
        """The two products of a block; dHidden's sum over ranks begins before the last of them.

        Args:
            grad_RV: gradient of the logits before the temperature, in the dtype of the products.
            hidden_RD: hidden states of the chunk, likewise.
        """
        self.seen += 1
        if not grad_RV.shape[0]:
            return
        if self.part_RD is not None:
            if self.seen == 1:
                product(grad_RV, block.weight_VD, self.part_RD)
            else:
                add_product(self.part_RD, grad_RV, block.weight_VD)
            if self.seen == self.blocks and not self.sequence_parallel:
                self.work = self.shard.start_sum(self.part_RD)
        if self.weight_VD is not None:
            self._add_weight(self.weight_VD[block.begin : block.begin + grad_RV.shape[1]], grad_RV, hidden_RD)

    def _add_weight(self, total_VD: Tensor, grad_RV: Tensor, hidden_RD: Tensor) -> None:
        self.touched = True
        if self.written:
            add_product(total_VD, grad_RV.t(), hidden_RD)
        elif total_VD.dtype in (self.shard.operand, self.shard.dtype):
            product(grad_RV.t(), hidden_RD, total_VD)
        else:
            total_VD.copy_(grad_RV.t() @ hidden_RD)

    def end(self) -> None:
        """All blocks of the chunk were added; what the next chunk gives to dWeight is added to theirs."""
        assert self.seen == self.blocks
        self.written = self.written or self.touched
        if self.work is not None:
            self.work.wait()
        if self.part_RD is not None and self.hidden_RD is not None and isinstance(self.rows, Tensor):
            self.hidden_RD[self.rows] = self.part_RD

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
