"""Scores of sentences against the expert sentences of their prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.checks import check_offsets, check_shape
from aapa.kernels.dispatch import resolve, run

if TYPE_CHECKING:
    from torch import Tensor

    from aapa.kernels.sentence_types import SentenceHead

# Projected sizes up to which a program of the kernel holds its sentences in registers and shared memory on every GPU
# that we compile for: at 256 registers spill on sm100, and gfx942 has no shared memory left.
KERNEL_RANK = 128


def sentence_scores(
    sentence_SD: Tensor,
    cu_group: Tensor,
    expert_ED: Tensor,
    cu_expert: Tensor,
    head: SentenceHead,
    *,
    backend: str = "auto",
) -> Tensor:
    """Score of each sentence by soft alignment with its group's expert sentences.

    alpha_kj = softmax_j(<Pu_k, Pe_j> / tau),  m_k = sum_j alpha_kj Pe_j,
    s_k = MLP([Pu_k ; m_k ; Pu_k - m_k ; Pu_k * m_k]), one hidden layer with exact GELU.             (2.1)

    Args:
        sentence_SD: [S, D] float, mean hidden state of each sentence, sorted by group (a group is a prompt).
        cu_group: [G + 1] integer offsets from 0 to S: group g owns the sentences [cu_group[g], cu_group[g + 1]). Those
            that lie on a GPU are not looked at, for the host would wait for them: wrong ones read outside of the rows.
        expert_ED: [E, D], the expert sentences, sorted by group.
        cu_expert: [G + 1] integer offsets from 0 to E into `expert_ED`, likewise.
        head: weights; they are brought to the dtype of the computation.
        backend: "auto" | "triton" | "reference". The reference is differentiable in all inputs, and is what "auto"
            takes where a gradient is wanted, or R is above 128: there is no kernel for those.

    Returns:
        score_S: [S] float32, or float64 for float64 inputs. 0 where a group has no expert sentence; the caller masks
        those. A score depends on its own group alone.

    Raises:
        ValueError: shapes and offsets that do not belong together; a gradient is wanted of a kernel that has none.
    """
    hidden = head.projection_RD.shape[1]
    for name, value in (("sentence_SD", sentence_SD), ("expert_ED", expert_ED)):
        if value.dim() != 2 or value.shape[1] != hidden:
            raise ValueError(f"{name}: expected shape [*, {hidden}], got {tuple(value.shape)}")
    check_offsets("cu_group", cu_group, sentence_SD.shape[0])
    check_offsets("cu_expert", cu_expert, expert_ED.shape[0])
    check_shape("cu_expert", cu_expert, tuple(cu_group.shape))
    reason = _needs_reference(sentence_SD, expert_ED, head)
    if reason is not None and backend != "reference":
        if backend != "auto":
            resolve("sentence_scores", backend, sentence_SD.device)
            raise ValueError(f"backend: expected 'reference' where {reason}, got {backend!r}")
        backend = "reference"
    score_S: Tensor = run(
        "sentence_scores", backend, sentence_SD.device, sentence_SD, cu_group, expert_ED, cu_expert, head
    )
    return score_S


def _needs_reference(sentence_SD: Tensor, expert_ED: Tensor, head: SentenceHead) -> str | None:
    """Why only the reference can compute this; None where a kernel can."""
    import torch

    if head.projection_RD.shape[0] > KERNEL_RANK:
        return f"the projected size is above {KERNEL_RANK}"
    inputs = (sentence_SD, expert_ED, *head.tensors().values())
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return "a gradient is wanted"
    return None
