"""`linear_logprob`: by chunks with `TritonGlue`; without stored logits where no gradient is needed and that pays."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.chunked import logprob
from aapa.kernels.chunked.shard import Shard
from aapa.kernels.triton import fused_scoring
from aapa.kernels.triton.glue import GLUE


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
    wanted = torch.is_grad_enabled() and (hidden_TD.requires_grad or weight_VD.requires_grad)
    if not wanted and fused_scoring.pays(hidden_TD, weight_VD):
        shard = Shard(hidden_TD, weight_VD, vocab_size, tp_group)
        whole_TD = shard.whole_rows(hidden_TD, sequence_parallel)
        logprob_T, entropy_T = fused_scoring.scores(whole_TD, target_T, temperature_T, shard)
        return logprob_T, entropy_T if entropy else None
    layout = (vocab_size, tp_group, sequence_parallel)
    return logprob.linear_logprob(GLUE, hidden_TD, weight_VD, target_T, temperature_T, entropy, *layout)
