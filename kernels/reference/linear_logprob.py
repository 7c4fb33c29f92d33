"""Reference of `linear_logprob`: chunks of rows, recomputed in the backward pass.

Shape legend: T tokens, D hidden size, V vocabulary rows of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.reference.attach import first_order
from aapa.kernels.reference.vocab_parallel import (
    CHUNK_ROWS,
    VocabShard,
    gather_sequence,
    logits_gradient,
    reduce_hidden_gradient,
    statistics,
    statistics_dtype,
)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        temperature_T: Tensor | None,
        vocab_size: int | None,
        group: ProcessGroup | None,
        sequence_parallel: bool,
    ) -> tuple[Tensor, Tensor]:
        whole_TD = gather_sequence(hidden_TD, group, sequence_parallel)
        dtype = statistics_dtype(hidden_TD)
        shard = VocabShard.of(weight_VD, vocab_size, group, dtype)
        stats_3T = torch.empty(3, target_T.shape[0], dtype=dtype, device=hidden_TD.device)
        for start in range(0, target_T.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits_TV = shard.logits(whole_TD[rows], None if temperature_T is None else temperature_T[rows])
            stats_3T[:, rows] = torch.stack(statistics(logits_TV, target_T[rows], shard))
        logprob_T, entropy_T, lse_T = stats_3T
        ctx.save_for_backward(whole_TD, weight_VD, target_T, temperature_T, lse_T, entropy_T)
        ctx.layout = vocab_size, group, sequence_parallel, hidden_TD.dtype
        return logprob_T.clone(), entropy_T.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, logprob_grad_T: Tensor, entropy_grad_T: Tensor) -> Any:
        whole_TD, weight_VD, target_T, temperature_T, lse_T, entropy_T = ctx.saved_tensors
        vocab_size, group, sequence_parallel, dtype = ctx.layout
        shard = VocabShard.of(weight_VD, vocab_size, group, lse_T.dtype)
        hidden_grad_TD = torch.empty_like(whole_TD, dtype=lse_T.dtype)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=lse_T.dtype)
        for start in range(0, target_T.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            temperature = None if temperature_T is None else temperature_T[rows]
            grad_TV = logits_gradient(
                shard.logits(whole_TD[rows], temperature),
                lse_T[rows],
                target_T[rows],
                shard,
                temperature,
                logprob_grad_T[rows],
                entropy_grad_T[rows],
                entropy_T[rows],
            )
            hidden_grad_TD[rows] = grad_TV @ shard.weight_VD
            weight_grad_VD[: grad_TV.shape[1]] += grad_TV.t() @ whole_TD[rows].to(grad_TV.dtype)
        hidden_grad_TD = reduce_hidden_gradient(hidden_grad_TD, group, sequence_parallel)
        return hidden_grad_TD.to(dtype), weight_grad_VD.to(weight_VD.dtype), None, None, None, None, None


def linear_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    temperature_T: Tensor | None,
    entropy: bool,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
) -> tuple[Tensor, Tensor | None]:
    logprob_T, entropy_T = _LinearLogprob.apply(
        hidden_TD, weight_VD, target_T, temperature_T, vocab_size, tp_group, sequence_parallel
    )
    return logprob_T, entropy_T if entropy else None
