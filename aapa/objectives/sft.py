"""Supervised fine-tuning on expert responses, and its anchored version A-SFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aapa.anchor import Anchor
from aapa.objectives.base import Aggregation, Scale, anchor_weight

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


@dataclass(frozen=True)
class SFT:
    """L = sum_t -log pi(y*_t) / (expert tokens of the global batch), plus lambda L_adv on own rollouts (4.2).

    The anchor's weights are per sequence, lambda / (rollouts x tokens of the response) (3.3).

    Attributes:
        anchor: None for plain SFT. With an anchor, `group_size` rollouts per prompt are sampled for it.
        group_size: rollouts per prompt of A-SFT, at least 2, for the leave-one-out baseline of (3.2).
    """

    anchor: Anchor | None = None
    group_size: int = 4

    aggregation: ClassVar[Aggregation] = "grpo"
    scale: ClassVar[Scale] = "none"
    updates_per_rollout: ClassVar[int] = 1
    epochs_per_rollout: ClassVar[int] = 1
    uses_experts: ClassVar[bool] = True
    needs_rewards: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size: expected at least 2, got {self.group_size}")
        if self.anchor is not None and self.anchor.mode == "reward":
            raise ValueError("anchor.mode: expected 'loss' (SFT has no reward to shape), got 'reward'")

    def uses_rollouts(self, step: int) -> bool:
        return anchor_weight(self.anchor, step) > 0

    def components(self, step: int) -> tuple[str, ...]:
        return ("sft", "adv") if anchor_weight(self.anchor, step) > 0 else ("sft",)

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        if not sequence.tokens:
            return {}
        if sequence.role == "expert":
            return {"sft": 1.0 / counts.expert_tokens}
        if not sequence.anchored:
            return {}
        return {"adv": anchor_weight(self.anchor, step) / (counts.rollouts * sequence.tokens)}

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        from aapa.kernels.fields import TokenLossSpec

        return batch.fields(), TokenLossSpec()
