"""This rank's part of the vocabulary, and what tensor-parallel ranks tell each other.

Shape legend: T tokens, R rows of a chunk, D hidden size, V vocabulary rows of this rank, N ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from aapa.kernels.chunked.glue import merge
from aapa.kernels.chunked.products import operand_dtype
from aapa.kernels.reference.vocab_parallel import outside, statistics_dtype

# torch 2.13 names them anew and warns about the names that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class VocabBlock:
    """Consecutive rows of the head: all of this rank, or a part of them.

    Attributes:
        weight_VD: the rows, in the dtype of the products.
        begin: place of the first among the rows of this rank.
        first: id of the first in the whole vocabulary.
    """

    weight_VD: Tensor
    begin: int
    first: int

    def columns(self, target_R: Tensor) -> Tensor:
        """[R] int64, column of each target in this block, -1 where it lies elsewhere."""
        local_R = target_R.long() - self.first
        return torch.where((local_R >= 0) & (local_R < self.weight_VD.shape[0]), local_R, -1)


class Shard:
    """The rows of the head that this rank holds, without those that only pad the vocabulary.

    Attributes:
        dtype: of logits, statistics and losses.
        operand: dtype that the products read.
        rows: rows of this rank, padding included: the same on every rank, and so is what is planned by them.
        real: those of them that belong to the true vocabulary.
        vocab_size: of the true vocabulary, over all ranks.
    """

    def __init__(
        self, hidden: Tensor, weight_VD: Tensor, vocab_size: int | None, group: dist.ProcessGroup | None
    ) -> None:
        rows = weight_VD.shape[0]
        ranks = 1 if group is None else dist.get_world_size(group)
        first = 0 if group is None else rows * dist.get_rank(group)
        vocab_size = rows * ranks if vocab_size is None else vocab_size
        if not 0 < vocab_size <= rows * ranks:
            expected = f"1 … {rows * ranks} (rows of weight_VD over all ranks)"
            raise ValueError(f"vocab_size: expected {expected}, got {vocab_size}")
        self.group, self.ranks, self.rows, self.first, self.vocab_size = group, ranks, rows, first, vocab_size
        self.dtype, self.operand = statistics_dtype(hidden), operand_dtype(hidden, weight_VD)
        self.real = max(0, min(rows, vocab_size - first))
        self.weight_VD = weight_VD.detach()

    @cached_property
    def whole(self) -> VocabBlock:
        """All rows; where the products read another dtype they are cast once."""
        return VocabBlock(self.weight_VD[: self.real].to(self.operand), 0, self.first)

    def blocks(self, size: int | None) -> Iterator[VocabBlock]:
        """All rows in blocks of at most `size`, in one for None; one empty block where this rank holds padding only."""
        if size is None or size >= self.real:
            yield self.whole
            return
        for begin in range(0, self.real, size):
            part_VD = self.weight_VD[begin : min(begin + size, self.real)]
            yield VocabBlock(part_VD.to(self.operand), begin, self.first + begin)

    def count(self, size: int | None) -> int:
        """Number of those blocks."""
        return 1 if size is None else -(-max(self.real, 1) // size)

    def merged(self, stats_4R: Tensor, target_R: Tensor) -> Tensor:
        """Row statistics over the whole vocabulary: one all-gather of 4 numbers per row, merged in order of rank.

        A target outside of the vocabulary gets the logit NaN.
        """
        if self.group is not None and stats_4R.shape[1]:
            parts = stats_4R.new_empty(self.ranks, *stats_4R.shape)
            _all_gather(parts.view(-1), stats_4R.contiguous().view(-1), group=self.group)
            stats_4R = merge(parts)
        stats_4R[3].masked_fill_(outside(target_R, self.vocab_size), torch.nan)
        return stats_4R

    def whole_rows(self, hidden_TD: Tensor, sequence_parallel: bool) -> Tensor:
        """All tokens of hidden states that sequence parallelism splits by rows."""
        if not sequence_parallel or self.group is None:
            return hidden_TD
        whole_TD = hidden_TD.new_empty(hidden_TD.shape[0] * self.ranks, hidden_TD.shape[1])
        _all_gather(whole_TD, hidden_TD.contiguous(), group=self.group)
        return whole_TD

    def start_sum(self, grad_RD: Tensor) -> dist.Work | None:
        """Begin to sum the ranks' parts of dHidden in place; dWeight's product can run meanwhile."""
        return None if self.group is None else dist.all_reduce(grad_RD, group=self.group, async_op=True)

    def own_rows(self, grad_TD: Tensor, sequence_parallel: bool) -> Tensor:
        """Of the parts of dHidden: this rank's rows of their sum under sequence parallelism; else they are returned."""
        if self.group is None or not sequence_parallel:
            return grad_TD
        own_TD = grad_TD.new_empty(grad_TD.shape[0] // self.ranks, grad_TD.shape[1])
        _reduce_scatter(own_TD, grad_TD, group=self.group)
        return own_TD
