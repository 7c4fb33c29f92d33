"""Importance correction between the rollout engine's log-probs and the trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.objectives.base import Correction

if TYPE_CHECKING:
    from torch import Tensor


def importance_correction(
    old_logprob: Tensor,
    rollout_logprob: Tensor,
    mask: Tensor | None,
    kind: Correction,
    minimum: float = 0.0,
    maximum: float = 3.0,
) -> Tensor:
    """The constant factor c of a rollout's loss, where the engine sampled from other probabilities than the trainer's.

    c_t = exp(d_t) per token, or c = exp(sum_t d_t) for the whole response, d = old - rollout; then "…_truncate" clips c
    to [minimum, maximum], "…_mask" sets what lies outside to 0. The factor enters the value of the loss, never a
    denominator (METHOD 4.1).

    Args:
        old_logprob: [R] float, under the trainer's policy before the update.
        rollout_logprob: [R] float, as the engine sampled; NaN where it does not know, which corrects nothing.
        mask: [R] bool, tokens in the loss; the others take no part in the sum. None means all.
        kind: "token_truncate" | "token_mask" | "sequence_truncate" | "sequence_mask".
        minimum, maximum: bounds of c.

    Returns:
        [R] float, of the dtype of `old_logprob`.

    Raises:
        ValueError: "none" or an unknown kind.

    Source: truncated importance sampling (Yao et al. 2025) and its masked and sequence-level forms, as in TRL 1.16.
    """
    level, _, bound = kind.partition("_")
    if level not in ("token", "sequence") or bound not in ("truncate", "mask"):
        raise ValueError(f"kind: expected token_ or sequence_ with truncate or mask, got {kind!r}")
    difference = (old_logprob - rollout_logprob.to(old_logprob.dtype)).nan_to_num(nan=0.0)
    if mask is not None:
        difference = difference.where(mask, 0.0)
    if level == "sequence":
        difference = difference.sum().expand_as(difference)
    factor = difference.exp()
    if bound == "truncate":
        return factor.clamp(minimum, maximum)
    return factor.where((factor >= minimum) & (factor <= maximum), 0.0)
