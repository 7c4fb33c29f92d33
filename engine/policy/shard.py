"""A micro-batch as one rank sees it: padded to what the layout divides, cut to its tokens, and put together again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aapa.batch import TokenBatch
from aapa.engine.policy.attention import PackedSeq
from aapa.engine.policy.context import ContextSplit
from aapa.engine.policy.parallel import Parallel
from aapa.kernels.fields import TokenFields

# What padding holds where it is not 0; its weights are 0, so that no loss sees it.
FILL = {"temperature_T": 1.0, "sequence_T": -1}


class Shard:
    """This rank's tokens of a micro-batch.

    Sequence and context parallelism cut the packed tokens into equal parts. Tokens that are missing for that are added
    at the end as one more sequence; layouts without them add none.

    Attributes:
        batch: the micro-batch, on the rank's device.
        packed: bounds of the sequences for attention.
        token_T, position_T: inputs of this rank's part.
    """

    def __init__(self, batch: TokenBatch, parallel: Parallel) -> None:
        self.batch, self.parallel = batch.to(parallel.device), parallel
        self.tokens = len(batch.token_T)
        self.padding = -self.tokens % token_multiple(parallel)
        cu_seqlens, longest = self.batch.cu_seqlens, self.batch.max_seqlen
        if self.padding:
            end = cu_seqlens.new_tensor([self.tokens + self.padding])
            cu_seqlens, longest = torch.cat([cu_seqlens, end]), max(longest, self.padding)
        context = ContextSplit(cu_seqlens, parallel.context_group) if parallel.context > 1 else None
        self.context = context
        self.packed = PackedSeq(cu_seqlens, longest, context)
        self.token_T = self.mine(self.batch.token_T)
        self.position_T = self._local(self._padded(self.batch.position_T, range(self.padding)))

    def mine(self, values_T: Tensor, fill: float = 0) -> Tensor:
        """This rank's part of [T] values."""
        return self._local(self._padded(values_T, [fill] * self.padding))

    def fields(self, whole: TokenFields) -> TokenFields:
        """This rank's part of a loss's inputs."""
        padded = self.padded_fields(whole)
        return padded if self.context is None else padded.rows(self.context.local)

    def padded_fields(self, whole: TokenFields) -> TokenFields:
        """A loss's inputs for all ranks' tokens."""
        if not self.padding:
            return whole
        values = {field.name: getattr(whole, field.name) for field in fields(whole)}
        padded: dict[str, Any] = {
            name: None if value is None else self._padded(value, [FILL.get(name, 0)] * self.padding)
            for name, value in values.items()
        }
        return TokenFields(**padded)

    def whole(self, values: Tensor) -> Tensor:
        """[T, …] values of all tokens from those of this rank, which every tensor-parallel rank must hold alike."""
        if self.context is not None:
            values = self.context.gather(values)
        return values[: self.tokens]

    def whole_hidden(self, hidden: Tensor) -> Tensor:
        """[T, D] hidden states of all tokens from this rank's; not differentiable."""
        return self.whole(gather_rows(hidden, self.parallel))

    def _padded(self, values_T: Tensor, tail: list[float] | range) -> Tensor:
        if not self.padding:
            return values_T
        return torch.cat([values_T, torch.tensor(list(tail), dtype=values_T.dtype, device=values_T.device)])

    def _local(self, values_T: Tensor) -> Tensor:
        return values_T if self.context is None else values_T[self.context.local]


def gather_rows(hidden: Tensor, parallel: Parallel) -> Tensor:
    """Rows that sequence parallelism splits over the tensor-parallel ranks, of all of them; not differentiable."""
    if not parallel.sequence:
        return hidden
    whole = hidden.new_empty(hidden.shape[0] * parallel.tensor, hidden.shape[1])
    dist.all_gather_into_tensor(whole, hidden.contiguous(), group=parallel.tensor_group)
    return whole


def token_multiple(parallel: Parallel) -> int:
    """What must divide the tokens of a micro-batch: two chunks a context-parallel rank, then rows a tensor rank."""
    chunks = 2 * parallel.context if parallel.context > 1 else 1
    return chunks * (parallel.tensor if parallel.sequence else 1)


def local_rows(tokens: int, parallel: Parallel) -> int:
    """Rows of hidden states that a rank has of a micro-batch."""
    multiple = token_multiple(parallel)
    padded = -(-tokens // multiple) * multiple
    return padded // parallel.context // (parallel.tensor if parallel.sequence else 1)
