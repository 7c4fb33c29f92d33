"""Row statistics of logits whose vocabulary is split over tensor-parallel ranks.

Shape legend: T tokens of a chunk, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ROWS = 1024


@dataclass(frozen=True)
class VocabShard:
    """The rows of the head that this rank holds; rows at or above the true vocabulary size are padding."""

    weight_VD: Tensor
    first: int
    vocab_size: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(
        cls, weight_VD: Tensor, vocab_size: int | None, group: dist.ProcessGroup | None, dtype: torch.dtype
    ) -> VocabShard:
        """Shard of this rank: padding rows cut off, values in the dtype of the statistics."""
        rows = weight_VD.shape[0]
        first = rows * (dist.get_rank(group) if group is not None else 0)
        total = rows * (dist.get_world_size(group) if group is not None else 1)
        vocab_size = total if vocab_size is None else vocab_size
        if not 0 < vocab_size <= total:
            raise ValueError(f"vocab_size: expected 1 … {total} (rows of weight_VD over all ranks), got {vocab_size}")
        real = max(0, min(rows, vocab_size - first))
        return cls(weight_VD[:real].detach().to(dtype), first, vocab_size, group)

    def logits(self, hidden_TD: Tensor, temperature_T: Tensor | None) -> Tensor:
        logits_TV = hidden_TD.to(self.weight_VD.dtype) @ self.weight_VD.t()
        return logits_TV if temperature_T is None else logits_TV.div_(temperature_T[:, None])

    def owned(self, target_T: Tensor) -> tuple[Tensor, Tensor]:
        """(rows whose target lies in this shard, its column there)."""
        local_T = target_T.long() - self.first
        mine_T = ((local_T >= 0) & (local_T < self.weight_VD.shape[0])).nonzero()[:, 0]
        return mine_T, local_T[mine_T]


def statistics(logits_TV: Tensor, target_T: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor, Tensor]:
    """(log-prob of the target, entropy, log-sum-exp), each [T], over the whole vocabulary.

    logprob = z_y - lse,  entropy = lse - sum_v p_v z_v; a target outside of the vocabulary has the log-prob NaN. Under
    tensor parallelism one maximum and one sum of three numbers per row are reduced.
    """
    rows = logits_TV.shape[0]
    maximum_T = logits_TV.amax(-1) if logits_TV.shape[1] else logits_TV.new_full((rows,), float("-inf"))
    if shard.group is not None:
        dist.all_reduce(maximum_T, op=dist.ReduceOp.MAX, group=shard.group)
    exp_TV = (logits_TV - maximum_T[:, None]).exp()
    mine_T, column_T = shard.owned(target_T)
    target_logit_T = logits_TV.new_zeros(rows)
    target_logit_T[mine_T] = logits_TV[mine_T, column_T]
    sums_3T = torch.stack([exp_TV.sum(-1), (exp_TV * logits_TV).sum(-1), target_logit_T])
    if shard.group is not None:
        dist.all_reduce(sums_3T, group=shard.group)
    lse_T = maximum_T + sums_3T[0].log()
    logprob_T = (sums_3T[2] - lse_T).masked_fill_(outside(target_T, shard.vocab_size), torch.nan)
    return logprob_T, lse_T - sums_3T[1] / sums_3T[0], lse_T


def outside(target_T: Tensor, vocab_size: int) -> Tensor:
    """[T] bool, targets that are no id of the vocabulary."""
    return (target_T < 0) | (target_T >= vocab_size)


def logits_gradient(
    logits_TV: Tensor,
    lse_T: Tensor,
    target_T: Tensor,
    shard: VocabShard,
    temperature_T: Tensor | None,
    logprob_grad_T: Tensor,
    entropy_grad_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
) -> Tensor:
    """d loss / d (logits before the temperature), [T, V]; overwrites `logits_TV`.

    With z the tempered logits: d logprob / dz_v = 1[v = y] - p_v,  d entropy / dz_v = -p_v (log p_v + entropy).
    """
    log_p_TV = logits_TV.sub_(lse_T[:, None])
    p_TV = log_p_TV.exp()
    if entropy_grad_T is None:
        grad_TV = p_TV.mul_(-logprob_grad_T[:, None])
    else:
        assert entropy_T is not None
        grad_TV = -p_TV * (logprob_grad_T[:, None] + entropy_grad_T[:, None] * (log_p_TV + entropy_T[:, None]))
    mine_T, column_T = shard.owned(target_T)
    grad_TV[mine_T, column_T] += logprob_grad_T[mine_T]
    return grad_TV if temperature_T is None else grad_TV.div_(temperature_T[:, None])


def gather_sequence(hidden_TD: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
    """All tokens of a hidden state that sequence parallelism splits by rows over `group`."""
    if not sequence_parallel or group is None:
        return hidden_TD
    parts = [torch.empty_like(hidden_TD) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, hidden_TD.contiguous(), group=group)
    return torch.cat(parts)


def reduce_hidden_gradient(grad_TD: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
    """Sum of the shards' parts of dHidden; this rank's rows only under sequence parallelism."""
    if group is None:
        return grad_TD
    dist.all_reduce(grad_TD, group=group)
    if not sequence_parallel:
        return grad_TD
    return grad_TD.chunk(dist.get_world_size(group))[dist.get_rank(group)].contiguous()


def statistics_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
