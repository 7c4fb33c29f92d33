"""`reference_head`: log-probs by the head's kernels, means by `segment_means`, from one gathered tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.linear_logprob import linear_logprob
from aapa.kernels.reference.vocab_parallel import gather_sequence
from aapa.kernels.triton.segment_mean import segment_means


@torch.no_grad()
def reference_head(
    hidden_TD: Tensor,
    weight_VD: Tensor | None,
    target_T: Tensor | None,
    cu_sents: Tensor | None,
    temperature: float | Tensor,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    hidden_TD = gather_sequence(hidden_TD, tp_group, sequence_parallel)
    logprob_T = None
    if weight_VD is not None and target_T is not None:
        logprob_T, _ = linear_logprob(
            hidden_TD,
            weight_VD,
            target_T,
            temperature=temperature,
            vocab_size=vocab_size,
            tp_group=tp_group,
            backend="triton",
        )
    return logprob_T, None if cu_sents is None else segment_means(hidden_TD, cu_sents)
