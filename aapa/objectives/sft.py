"""Supervised fine-tuning on expert responses, and its anchored version A-SFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aapa.anchor import Anchor
from aapa.objectives.base import Objective, anchor_weight, check_least

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


@dataclass(frozen=True)
class SFT(Objective):
    """L = sum_t -log pi(y*_t) / (expert tokens of the global batch), plus lambda L_adv on own rollouts (4.2).

    The anchor's weights are per sequence, lambda / (rollouts x tokens of the response) (3.3).

    Attributes:
        anchor: None for plain SFT. With an anchor, `group_size` rollouts per prompt are sampled for it.
        group_size: rollouts per prompt of A-SFT, at least 2, for the leave-one-out baseline of (3.2).
    """

    anchor: Anchor | None = None
    group_size: int = 4

    aggregation = "grpo"
    scale = "none"
    needs_rewards = False

    def __post_init__(self) -> None:
        check_least(self, "group_size", 2)
        if self.anchor is not None and self.anchor.mode == "reward":
            raise ValueError("anchor.mode: expected 'loss' (SFT has no reward to shape), got 'reward'")

    def uses_experts(self, step: int) -> bool:
        return True

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
