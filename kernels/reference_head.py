"""Log-probs and sentence means of a frozen trunk from one read of its hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.checks import check_offsets
from aapa.kernels.dispatch import run
from aapa.kernels.linear_logprob import check_head_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def reference_head(
    hidden_TD: Tensor,
    weight_VD: Tensor | None,
    target_T: Tensor | None,
    cu_sents: Tensor | None,
    *,
    temperature: float | Tensor = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
    sequence_parallel: bool = False,
    backend: str = "auto",
) -> tuple[Tensor | None, Tensor | None]:
    """Reference log-probs (for the KL term) and mean hidden states of sentences (2.1), without gradients.

    logprob_t as in `linear_logprob`;  u_k = mean of h_t over cu_sents[k] <= t < cu_sents[k + 1].

    Args:
        hidden_TD: [T, D], the frozen model's last hidden states of whole sequences (rows split over `tp_group` with
            `sequence_parallel`).
        weight_VD, target_T: [V_local, D] head and [T] int64 targets; both None to skip the log-probs.
        cu_sents: [S + 1] int32 offsets that tile [0, T); prompts are spans of their own, which the caller leaves out
            of the scores. None to skip the means. On a GPU the host waits for them.
        temperature, vocab_size, tp_group, sequence_parallel, backend: as in `linear_logprob`.

    Returns:
        ([T] float log-probs or None, [S, D] float32 means or None; float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not belong together, offsets that do not tile the tokens.
    """
    import torch.distributed as dist

    shards = dist.get_world_size(tp_group) if sequence_parallel and tp_group is not None else 1
    if (weight_VD is None) != (target_T is None):
        raise ValueError("target_T: expected together with weight_VD, or neither")
    if hidden_TD.dim() != 2:
        raise ValueError(f"hidden_TD: expected two dimensions [T, D], got shape {tuple(hidden_TD.shape)}")
    if weight_VD is not None and target_T is not None:
        check_head_inputs(hidden_TD, weight_VD, target_T, shards)
    if cu_sents is not None:
        check_offsets("cu_sents", cu_sents, hidden_TD.shape[0] * shards, increasing=True, wait=True)
    layout = (temperature, vocab_size, tp_group, sequence_parallel)
    logprob_T, mean_SD = run(
        "reference_head", backend, hidden_TD.device, hidden_TD, weight_VD, target_T, cu_sents, *layout
    )
    return logprob_T, mean_SD
