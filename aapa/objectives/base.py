"""What the training system asks of an objective, and the answers most objectives give."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from aapa.anchor import Anchor

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


Aggregation = Literal["dapo", "grpo", "dr_grpo"]
Scale = Literal["group", "batch", "none"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
DynamicSampling = Literal["off", "auto"]


class Objective(ABC):
    """A loss that is a sum over tokens of component weight x component value (METHOD 4.1).

    An objective is a frozen dataclass; its fields are its hyperparameters, and may replace any attribute below. One of
    your own says at least which components it has, what they weigh, and what their values are:

        @dataclass(frozen=True)
        class Reinforce(Objective):
            group_size: int = 4

            def components(self, step):
                return ("custom",)

            def weights(self, sequence, counts, step):
                return {"custom": 1.0 / counts.rollout_tokens} if sequence.tokens else {}

            def lower(self, batch):
                return batch.fields(), TokenLossSpec(custom_loss=lambda logp, entropy, f: -f.advantage_T * logp)

    Attributes:
        anchor: the anchoring term, if any.
        group_size: rollouts per prompt, where rollouts are made.
        aggregation: how the anchor's baseline weighs rollouts: "dapo" | "grpo" | "dr_grpo".
        scale: what group-relative advantages are divided by: "group" | "batch" | "none".
        updates_per_rollout: optimizer steps that share one batch of rollouts, per pass over it.
        epochs_per_rollout: passes over it.
        needs_rewards: whether rollouts are rewarded.
        correction, correction_min, correction_max, mask_truncated, overlong_buffer, overlong_penalty,
        dynamic_sampling, dynamic_sampling_rounds: as in `GRPO`.
        expert_batch_size: as in `CHORD`.
    """

    anchor: Anchor | None = None
    group_size: int = 1
    aggregation: Aggregation = "dapo"
    scale: Scale = "group"
    updates_per_rollout: int = 1
    epochs_per_rollout: int = 1
    needs_rewards: bool = True
    correction: Correction = "none"
    correction_min: float = 0.0
    correction_max: float = 3.0
    mask_truncated: bool = False
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    dynamic_sampling: DynamicSampling = "off"
    dynamic_sampling_rounds: int = 4
    expert_batch_size: int | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy must be scored (the kl component)."""
        return False

    def uses_experts(self, step: int) -> bool:
        """Whether expert responses are trained on at this step."""
        return False

    def uses_rollouts(self, step: int) -> bool:
        """Whether this step samples from the policy."""
        return True

    def coefficients(self, step: int) -> dict[str, float]:
        """Scheduled coefficients worth a curve, by the names of metrics.jsonl."""
        return {} if self.anchor is None else {"anchor/weight": self.anchor.weight_at(step)}

    @abstractmethod
    def components(self, step: int) -> tuple[str, ...]:
        """Names of the components that exist at this step, out of "rl", "kl", "sft", "adv", "custom"."""

    @abstractmethod
    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        """Weight of each unmasked token of `sequence` in each component, from masks alone (4.1)."""

    @abstractmethod
    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        """What the kernels take."""


def anchor_weight(anchor: Anchor | None, step: int) -> float:
    """lambda of the separate loss term at a step; 0 where the anchor is absent or shapes the reward instead."""
    return anchor.weight_at(step) if anchor is not None and anchor.mode == "loss" else 0.0


def scoring_runs(anchor: Anchor | None, step: int) -> bool:
    """Whether the discriminator is asked at this step: never where lambda is 0."""
    return anchor is not None and anchor.weight_at(step) > 0.0


def refills(objective: Objective, step: int) -> bool:
    """Whether groups of equal rewards are replaced at this step: with lambda > 0 they still have their anchor term."""
    return objective.dynamic_sampling == "auto" and anchor_weight(objective.anchor, step) == 0.0


def check_choice(objective: Any, name: str, allowed: Iterable[str]) -> None:
    """Refuse a field that is none of `allowed`."""
    value, allowed = getattr(objective, name), tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def check_least(objective: Any, name: str, least: float) -> None:
    """Refuse a number that is below `least` or not finite; with a whole `least` it must be whole, too."""
    value, whole = getattr(objective, name), isinstance(least, int)
    if not (math.isfinite(value) and value >= least) or (whole and not isinstance(value, int)):
        wanted = f"a whole number of at least {least}" if whole else f"a finite number of at least {least:g}"
        raise ValueError(f"{name}: expected {wanted}, got {value}")
