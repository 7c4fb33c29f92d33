"""What the training system asks of an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from aapa.anchor import Anchor

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


Aggregation = Literal["dapo", "grpo", "dr_grpo"]
Scale = Literal["group", "batch", "none"]


class Objective(Protocol):
    """A loss that is a sum over tokens of component weight x component value (METHOD 4.1)."""

    @property
    def anchor(self) -> Anchor | None:
        """The anchoring term, if any."""

    @property
    def group_size(self) -> int:
        """Rollouts per prompt, where rollouts are made."""

    @property
    def aggregation(self) -> Aggregation:
        """How the anchor's baseline weighs rollouts: "dapo" | "grpo" | "dr_grpo"."""

    @property
    def scale(self) -> Scale:
        """What group-relative advantages are divided by: "group" | "batch" | "none"."""

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that share one batch of rollouts, per epoch over it."""

    @property
    def epochs_per_rollout(self) -> int:
        """Passes over one batch of rollouts."""

    @property
    def uses_experts(self) -> bool:
        """Whether expert responses are trained on."""

    @property
    def needs_rewards(self) -> bool:
        """Whether rollouts are rewarded."""

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference policy must be scored (the kl component)."""

    def uses_rollouts(self, step: int) -> bool:
        """Whether this step samples from the policy."""

    def components(self, step: int) -> tuple[str, ...]:
        """Names of the components that exist at this step."""

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        """Weight of each unmasked token of `sequence` in each component, from masks alone (4.1)."""

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        """What the kernels take."""


def anchor_weight(anchor: Anchor | None, step: int) -> float:
    """lambda of the separate loss term at a step; 0 where the anchor is absent or shapes the reward instead."""
    return anchor.weight_at(step) if anchor is not None and anchor.mode == "loss" else 0.0


def scoring_runs(anchor: Anchor | None, step: int) -> bool:
    """Whether the discriminator is asked at this step: never where lambda is 0."""
    return anchor is not None and anchor.weight_at(step) > 0.0
