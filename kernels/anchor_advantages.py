"""Group-relative advantages and centred anchor scores of packed response tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from aapa.kernels.checks import check_offsets, check_shape
from aapa.kernels.dispatch import run

if TYPE_CHECKING:
    from torch import Tensor

CHOICES = {
    "aggregation": ("dapo", "grpo", "dr_grpo"),
    "scale": ("group", "batch", "none"),
    "credit": ("sentence", "return"),
}


def anchor_advantages(
    score_S: Tensor,
    reward_N: Tensor,
    cu_sents: Tensor,
    cu_seqlens: Tensor,
    group_N: Tensor,
    *,
    mean: float,
    std: float,
    clip: float = 3.0,
    aggregation: Literal["dapo", "grpo", "dr_grpo"] = "dapo",
    scale: Literal["group", "batch", "none"] = "group",
    credit: Literal["sentence", "return"] = "sentence",
    discount: float = 1.0,
    anchored_N: Tensor | None = None,
    anchored_S: Tensor | None = None,
    eps: float = 1e-4,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The two advantages of every response token; neither carries a gradient.

    A_i = (r_i - mean_g) / (std_g + eps), the standard deviation Bessel-corrected.
    a_k = clip((s_k - mean) / std, -c, c)                                                              (3.1)
    B_t = a_{k(t)} - b_i, b_i the mean of a over the anchored tokens of the other rollouts of the group, weighted as
    the loss weighs tokens: all alike ("dapo", "dr_grpo"), or by 1 / |y_j| ("grpo").                   (3.2)
    With credit "return": B_t = sum_{k >= k(t)} discount^(k - k(t)) (a_k - b_i), over the response's
    sentences.

    Args:
        score_S: [S] float, discriminator score of each sentence.
        reward_N: [N] float, one a response. NaN masks a response: it is left out of the group's mean and
            standard deviation, and its advantage is 0.
        cu_sents: [S + 1] increasing integer offsets that tile [0, T) and refine `cu_seqlens`.
        cu_seqlens: [N + 1] integer offsets of the responses, T response tokens in all (no prompts). On a GPU the host
            waits for both offsets.
        group_N: [N] int64 group of each response, in any order.
        mean, std: calibration of the discriminator, mu_off and sigma_off.
        clip: c, in standard deviations.
        aggregation: of the loss that the anchor term is added to.
        scale: standard deviation to divide by: the group's, the whole batch's, or none. A single reward gives
            0.
        credit, discount: see above.
        anchored_N: [N] bool, responses that have an anchor; None means all. Without it, or without tokens, a
            response has B = 0 and is left out of b. A response with no other anchored response in its group
            has b = 0.
        anchored_S: [S] bool, sentences that the anchor speaks of; None means all. Outside of them B = 0.
        eps: added to the standard deviation; positive, so that equal rewards give 0.
        backend: "auto" | "triton" | "reference".

    Returns:
        (advantage_T, anchor_advantage_T): [T], float32, or float64 for float64 scores.

    Raises:
        ValueError: shapes that do not belong together, offsets that do not tile, an option that does not
            exist.
    """
    _check_choices(aggregation=aggregation, scale=scale, credit=credit)
    _check_numbers(mean, discount, std=std, clip=clip, eps=eps)
    _check_tensors(score_S, reward_N, cu_sents, cu_seqlens, group_N, anchored_N, anchored_S)
    advantage_T, anchor_advantage_T = run(
        "anchor_advantages",
        backend,
        score_S.device,
        score_S,
        reward_N,
        cu_sents,
        cu_seqlens,
        group_N,
        mean=mean,
        std=std,
        clip=clip,
        aggregation=aggregation,
        scale=scale,
        credit=credit,
        discount=discount,
        anchored_N=anchored_N,
        anchored_S=anchored_S,
        eps=eps,
    )
    return advantage_T, anchor_advantage_T


def _check_tensors(
    score_S: Tensor,
    reward_N: Tensor,
    cu_sents: Tensor,
    cu_seqlens: Tensor,
    group_N: Tensor,
    anchored_N: Tensor | None,
    anchored_S: Tensor | None,
) -> None:
    import torch

    tokens = int(cu_seqlens.flatten()[-1]) if cu_seqlens.numel() else 0
    check_offsets("cu_seqlens", cu_seqlens, tokens, wait=True)
    check_offsets("cu_sents", cu_sents, tokens, increasing=True, wait=True)
    responses, sentences = cu_seqlens.shape[0] - 1, cu_sents.shape[0] - 1
    shapes = {
        "score_S": (score_S, sentences),
        "reward_N": (reward_N, responses),
        "group_N": (group_N, responses),
        "anchored_N": (anchored_N, responses),
        "anchored_S": (anchored_S, sentences),
    }
    for name, (tensor, length) in shapes.items():
        if tensor is None:
            continue
        check_shape(name, tensor, (length,))
        if name.startswith("anchored") and tensor.dtype != torch.bool:
            raise ValueError(f"{name}: expected torch.bool, got {tensor.dtype}")


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}, got {value!r}")


def _check_numbers(mean: float, discount: float, **positive: float) -> None:
    if not math.isfinite(mean):
        raise ValueError(f"mean: expected a finite number, got {mean}")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: expected a number in [0, 1], got {discount}")
    for name, number in positive.items():
        if not number > 0:
            raise ValueError(f"{name}: expected a positive number, got {number}")
