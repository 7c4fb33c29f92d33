"""Group-relative policy optimisation, and its anchored version A-GRPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aapa.anchor import Anchor
from aapa.objectives.base import Aggregation, Scale, anchor_weight

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


@dataclass(frozen=True)
class GRPO:
    """Clipped surrogate with group-relative advantages, plus beta x KL, plus lambda L_adv on the same rollouts (4.2).

    A_i = (r_i - mean_g) / (std_g + 1e-4);
    L = -sum_t w_t min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + beta KL.

    Attributes:
        group_size: rollouts per prompt, at least 2 (TRL: num_generations).
        beta: weight of the k3 KL estimate against the stage's starting policy; 0 means no reference model.
        clip_low, clip_high: epsilon below and above 1 (TRL: epsilon, epsilon_high).
        aggregation: token weights, with TRL's names. "dapo": 1 / tokens of the global batch; "grpo": 1 / (rollouts x
            |y_i|); "dr_grpo": 1 / (rollouts x max_response_length).
        scale: what the advantage is divided by: the std of its "group", of the "batch", or "none".
        updates_per_rollout: optimizer steps over one batch of rollouts (TRL: steps_per_generation over accumulation).
        epochs_per_rollout: passes over it (TRL: num_iterations).
        max_response_length: L_max of "dr_grpo", in tokens.
        anchor: None for plain GRPO.

    Source: Shao et al. 2024 (GRPO), Yu et al. 2025 (DAPO: asymmetric clip, token aggregation), Liu et al. 2025
    (Dr. GRPO).
    """

    group_size: int = 8
    beta: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "dapo"
    scale: Scale = "group"
    updates_per_rollout: int = 1
    epochs_per_rollout: int = 1
    max_response_length: int | None = None
    anchor: Anchor | None = None

    uses_experts: ClassVar[bool] = False
    needs_rewards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("group_size", 2), ("updates_per_rollout", 1), ("epochs_per_rollout", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("beta", "clip_low", "clip_high"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        if self.clip_low >= 1:
            raise ValueError(f"clip_low: expected a number below 1, got {self.clip_low}")
        for name, allowed in (
            ("aggregation", ("dapo", "grpo", "dr_grpo")),
            ("scale", ("group", "batch", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if (self.aggregation == "dr_grpo") != (self.max_response_length is not None):
            raise ValueError(
                "max_response_length: expected with aggregation 'dr_grpo' and only there, "
                f"got {self.max_response_length} with {self.aggregation!r}"
            )
        if self.max_response_length is not None and self.max_response_length < 1:
            raise ValueError(f"max_response_length: expected at least 1, got {self.max_response_length}")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def uses_rollouts(self, step: int) -> bool:
        return True

    def components(self, step: int) -> tuple[str, ...]:
        names = ("rl", "kl") if self.beta > 0 else ("rl",)
        return (*names, "adv") if anchor_weight(self.anchor, step) > 0 else names

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        if not sequence.tokens:
            return {}
        if self.aggregation == "dapo":
            weight = 1.0 / counts.rollout_tokens
        elif self.aggregation == "grpo":
            weight = 1.0 / (counts.rollouts * sequence.tokens)
        else:
            assert self.max_response_length is not None
            weight = 1.0 / (counts.rollouts * self.max_response_length)
        weights = {"rl": weight, "kl": self.beta * weight}
        if sequence.anchored:
            weights["adv"] = anchor_weight(self.anchor, step) * weight
        return weights

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        from aapa.kernels.fields import TokenLossSpec

        return batch.fields(), TokenLossSpec(clip_low=self.clip_low, clip_high=self.clip_high)
