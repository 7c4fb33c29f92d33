"""Group-relative policy optimisation, and its anchored version A-GRPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from aapa.anchor import Anchor
from aapa.objectives.base import (
    Aggregation,
    Correction,
    DynamicSampling,
    Objective,
    Scale,
    anchor_weight,
    check_choice,
    check_least,
)

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec

Surrogate = Literal["clip", "cispo"]
RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
CHOICES = {
    "kl": KLEstimator,
    "surrogate": Surrogate,
    "ratio_level": RatioLevel,
    "aggregation": Aggregation,
    "scale": Scale,
    "correction": Correction,
    "dynamic_sampling": DynamicSampling,
}


@dataclass(frozen=True)
class GRPO(Objective):
    """Clipped surrogate with group-relative advantages, plus beta x KL, plus lambda L_adv on the same rollouts (4.2).

    A_i = (r_i - mean_g) / (std_g + 1e-4);
    L = -sum_t w_t min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta KL.

    docs/objectives.md has the table of these names beside TRL's and verl's.

    Attributes:
        group_size: rollouts per prompt, at least 2.
        beta: weight of the KL estimate against the stage's starting policy; 0 means no reference model.
        kl: its estimator, "k1", "k2" or "k3".
        kl_correction: multiplies the estimate by rho, which makes its gradient that of the divergence.
        clip_low, clip_high: epsilon below and above 1.
        delta: dual clip: upper limit of rho where the advantage is negative, above 1 + clip_high.
        surrogate: "clip", or "cispo": -sg(clip(rho)) A log pi, which keeps every token's gradient. There clip_low = 1
            means no lower bound.
        ratio_level: "token", or "sequence" (GSPO): one rho per response, the geometric mean over its tokens.
        aggregation: token weights. "dapo": 1 / tokens of the global batch; "grpo": 1 / (rollouts x |y_i|);
            "dr_grpo": 1 / (rollouts x max_response_length).
        scale: what the advantage is divided by: the std of its "group", of the "batch", or "none".
        updates_per_rollout: optimizer steps over one batch of rollouts, per pass over it.
        epochs_per_rollout: passes over it.
        max_response_length: L_max of "dr_grpo", in tokens.
        correction: factor for rollouts whose engine computes other log-probs than the trainer,
            c = exp(old - rollout) per token or per sequence: "token_truncate", "sequence_truncate" (c is clipped to
            the bounds), "token_mask", "sequence_mask" (c outside of the bounds becomes 0), or "none".
        correction_min, correction_max: its bounds.
        mask_truncated: whether rollouts that hit the length limit train nothing.
        overlong_buffer: tokens before the length limit in which a rollout's reward sinks linearly; 0 for none.
        overlong_penalty: how much reward is lost at the limit.
        dynamic_sampling: "auto" replaces groups of equal rewards by groups of further prompts, at steps where the
            anchor has no term of its own in the loss (lambda = 0, or mode "reward"); "off" keeps them.
        dynamic_sampling_rounds: most rounds of sampling in a step; what is missing then is filled up with the groups
            that were set aside.
        anchor: None for plain GRPO.

    Source: Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO: asymmetric clip, token aggregation, overlong shaping,
    dynamic sampling), Liu et al. 2025 (Dr. GRPO), Zheng et al. 2025 (GSPO), MiniMax 2025 (CISPO), Ye et al. 2020
    (dual clip), DeepSeek-V3.2 (corrected KL). Defaults are those of TRL 1.16 where it has the knob.
    """

    group_size: int = 8
    beta: float = 0.0
    kl: KLEstimator = "k3"
    kl_correction: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    surrogate: Surrogate = "clip"
    ratio_level: RatioLevel = "token"
    aggregation: Aggregation = "dapo"
    scale: Scale = "group"
    updates_per_rollout: int = 1
    epochs_per_rollout: int = 1
    max_response_length: int | None = None
    correction: Correction = "none"
    correction_min: float = 0.0
    correction_max: float = 3.0
    mask_truncated: bool = False
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    dynamic_sampling: DynamicSampling = "off"
    dynamic_sampling_rounds: int = 4
    anchor: Anchor | None = None

    def __post_init__(self) -> None:
        check_least(self, "group_size", 2)
        for name in ("updates_per_rollout", "epochs_per_rollout", "dynamic_sampling_rounds"):
            check_least(self, name, 1)
        check_least(self, "overlong_buffer", 0)
        for name in ("beta", "clip_low", "clip_high", "correction_min", "correction_max", "overlong_penalty"):
            check_least(self, name, 0.0)
        for name, choices in CHOICES.items():
            check_choice(self, name, get_args(choices))
        self._check_clipping()
        if self.correction_max <= self.correction_min:
            raise ValueError(
                f"correction_max: expected more than correction_min = {self.correction_min:g}, got "
                f"{self.correction_max:g}"
            )
        if (self.aggregation == "dr_grpo") != (self.max_response_length is not None):
            raise ValueError(
                "max_response_length: expected with aggregation 'dr_grpo' and only there, "
                f"got {self.max_response_length} with {self.aggregation!r}"
            )
        if self.max_response_length is not None:
            check_least(self, "max_response_length", 1)

    def _check_clipping(self) -> None:
        if self.clip_low > 1 or (self.clip_low == 1 and self.surrogate == "clip"):
            wanted = "at most 1" if self.surrogate == "cispo" else "below 1"
            raise ValueError(f"clip_low: expected a number {wanted}, got {self.clip_low:g}")
        if self.delta is None:
            return
        if self.surrogate == "cispo":
            raise ValueError(f"delta: expected nothing with surrogate 'cispo', got {self.delta:g}")
        if not 1.0 + self.clip_high < self.delta < math.inf:
            raise ValueError(f"delta: expected more than 1 + clip_high = {1.0 + self.clip_high:g}, got {self.delta:g}")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def components(self, step: int) -> tuple[str, ...]:
        names = ("rl", "kl") if self.beta > 0 else ("rl",)
        return (*names, "adv") if anchor_weight(self.anchor, step) > 0 else names

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        if sequence.role == "expert" or not sequence.tokens:
            return {}
        weight = self.token_weight(sequence, counts)
        weights = {"rl": weight, "kl": self.beta * weight}
        if sequence.anchored:
            weights["adv"] = anchor_weight(self.anchor, step) * weight
        return weights

    def token_weight(self, sequence: Sequence, counts: BatchCounts) -> float:
        """w_t of (3.3): the aggregation weight over the global denominator."""
        if self.aggregation == "dapo":
            return 1.0 / counts.rollout_tokens
        if self.aggregation == "grpo":
            return 1.0 / (counts.rollouts * sequence.tokens)
        assert self.max_response_length is not None
        return 1.0 / (counts.rollouts * self.max_response_length)

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        from aapa.kernels.fields import TokenLossSpec

        return batch.fields(), TokenLossSpec(
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            delta=self.delta,
            surrogate=self.surrogate,
            ratio_level=self.ratio_level,
            kl=self.kl,
            kl_correction=self.kl_correction,
        )
