"""Context parallelism: the packed tokens of a micro-batch over ranks, and attention across them.

A micro-batch is cut into 2 x ranks chunks of equal length, whatever sequences lie in them; rank r holds chunks r and
2 x ranks - 1 - r, so that causal attention costs all ranks about as much (as Megatron and Llama 3 do, with sequences
instead of packed tokens). For attention the keys and values of all ranks are gathered, layer by layer; with grouped
queries they are a fraction of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def held_by(tokens: int, ranks: int, rank: int) -> Tensor:
    """Places of the packed tokens that a rank holds, int64 [tokens / ranks]."""
    chunks = torch.arange(tokens).chunk(2 * ranks)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]])


def gathered_order(tokens: int, ranks: int) -> Tensor:
    """Where each packed token lies once the ranks' parts are laid end to end, int64 [tokens]."""
    return torch.cat([held_by(tokens, ranks, rank) for rank in range(ranks)]).argsort()


class _Gather(torch.autograd.Function):
    """All ranks' rows in packed order; backward sums each row's gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.order, ctx.group = order, group
        gathered = local.new_empty(local.shape[0] * group.size(), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous(), group=group)
        return gathered.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        by_rank = torch.empty_like(grad).index_copy_(0, ctx.order, grad)
        local = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(local, by_rank, group=ctx.group)
        return local, None, None


@dataclass(frozen=True)
class Piece:
    """A chunk of queries and the keys that they may see: those from the start of the first one's sequence on.

    Attributes:
        queries: rows of this rank; keys: rows of all ranks' packed tokens.
        cu_queries, cu_keys: int32 offsets of the sequences within both; the last query of a sequence sees its last key.
        max_queries, max_keys: longest of them.
    """

    queries: slice
    keys: slice
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int


class ContextSplit:
    """How one micro-batch is split over the context-parallel ranks."""

    def __init__(self, cu_seqlens: Tensor, group: dist.ProcessGroup) -> None:
        """`cu_seqlens` are the offsets of all packed tokens, whose number 2 x ranks divides."""
        tokens, ranks, rank = int(cu_seqlens[-1]), group.size(), group.rank()
        self.group = group
        self.local = held_by(tokens, ranks, rank).to(cu_seqlens.device)
        self._order = gathered_order(tokens, ranks).to(cu_seqlens.device)
        chunk = tokens // (2 * ranks)
        starts = (rank * chunk, (2 * ranks - 1 - rank) * chunk)
        bounds = cu_seqlens.cpu()
        self.pieces = [
            _piece(bounds, start, chunk, place * chunk, cu_seqlens.device) for place, start in enumerate(starts)
        ]

    def gather(self, local: Tensor) -> Tensor:
        """[tokens, …] rows of all ranks in packed order, differentiable."""
        return _Gather.apply(local, self._order, self.group)


def _piece(bounds: Tensor, start: int, length: int, place: int, device: torch.device) -> Piece:
    """The piece of the chunk that begins at packed token `start` and at this rank's row `place`."""
    stop = start + length
    first = int(torch.searchsorted(bounds, start, right=True)) - 1
    inner = bounds[(bounds > start) & (bounds < stop)]
    ends = torch.cat([inner, inner.new_tensor([stop])])
    cu_queries = torch.cat([ends.new_zeros(1), ends - start])
    key_start = int(bounds[first])
    cu_keys = torch.cat([ends.new_zeros(1), ends - key_start])
    return Piece(
        queries=slice(place, place + length),
        keys=slice(key_start, stop),
        cu_queries=cu_queries.to(torch.int32).to(device),
        cu_keys=cu_keys.to(torch.int32).to(device),
        max_queries=int(cu_queries.diff().max()),
        max_keys=int(cu_keys.diff().max()),
    )
