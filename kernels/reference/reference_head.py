"""Reference of `reference_head`, and how its parts are put together for every backend.

Shape legend: T tokens, D hidden size, S sentences, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.linear_logprob import linear_logprob
from aapa.kernels.reference.vocab_parallel import gather_sequence, statistics_dtype


@torch.no_grad()
def head_of_parts(
    backend: str,
    means: Callable[[Tensor, Tensor], Tensor],
    hidden_TD: Tensor,
    weight_VD: Tensor | None,
    target_T: Tensor | None,
    cu_sents: Tensor | None,
    temperature: float | Tensor,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """`aapa.kernels.reference_head` with a backend's log-probs and its means of (hidden_TD, cu_sents)."""
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
            backend=backend,
        )
    return logprob_T, None if cu_sents is None else means(hidden_TD, cu_sents)


def _sentence_means(hidden_TD: Tensor, cu_sents: Tensor) -> Tensor:
    """Sums in token order within a sentence, so that a sentence's mean does not depend on its neighbours."""
    lengths_S = cu_sents.diff().to(hidden_TD.device)
    hidden_TD = hidden_TD.to(statistics_dtype(hidden_TD))
    return torch.segment_reduce(hidden_TD, "mean", lengths=lengths_S.long(), axis=0, unsafe=True)


reference_head = partial(head_of_parts, "reference", _sentence_means)
