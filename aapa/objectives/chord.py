"""CHORD: GRPO and SFT in one loss, and its anchored version A-CHORD."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aapa.objectives.base import anchor_weight, check_least
from aapa.objectives.grpo import GRPO
from aapa.schedules import Schedule, value_at

if TYPE_CHECKING:
    from aapa.batch import BatchCounts, Sequence, TokenBatch
    from aapa.kernels.fields import TokenFields, TokenLossSpec


@dataclass(frozen=True)
class CHORD(GRPO):
    """L = (1 - mu) L_GRPO + mu L_SFT, plus lambda L_adv on the rollouts (4.2).

    L_SFT = sum_t -phi_t log pi(y*_t) / (expert tokens of the global batch), phi_t = sg[p_t (1 - p_t)] or 1. Expert
    tokens are scored at temperature 1, rollout tokens at the sampling temperature. (1 - mu) multiplies the KL term,
    too; the anchor's coefficient is lambda alone.

    The fields of `GRPO`, and:

    Attributes:
        mu: share of the SFT loss, a number in [0, 1] or a `Schedule` ("cosine" with a warm-up is CHORD-mu's).
        phi: CHORD-phi: weighs expert tokens by sg[p (1 - p)], least where the policy is sure, either way.
        expert_batch_size: experts per step over all ranks, drawn on their own; None takes those of the step's prompts.

    Source: Zhang et al. 2025, "On-Policy RL Meets Off-Policy Experts" (arXiv 2508.11408); defaults, schedule and phi
    as in Trinity-RFT.
    """

    mu: float | Schedule = 0.1
    phi: bool = True
    expert_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = (self.mu.start, self.mu.end) if isinstance(self.mu, Schedule) else (self.mu,)
        for value in ends:
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"mu: expected numbers from 0 to 1, got {self.mu}")
        if self.expert_batch_size is not None:
            check_least(self, "expert_batch_size", 1)

    def uses_experts(self, step: int) -> bool:
        return value_at(self.mu, step) > 0

    def uses_rollouts(self, step: int) -> bool:
        return value_at(self.mu, step) < 1 or anchor_weight(self.anchor, step) > 0

    def coefficients(self, step: int) -> dict[str, float]:
        return {**super().coefficients(step), "chord/mu": value_at(self.mu, step)}

    def components(self, step: int) -> tuple[str, ...]:
        names = super().components(step)
        if value_at(self.mu, step) == 1:
            names = tuple(name for name in names if name == "adv")
        return (*names, "sft") if self.uses_experts(step) else names

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        if not sequence.tokens:
            return {}
        mu = value_at(self.mu, step)
        if sequence.role == "expert":
            return {"sft": mu / counts.expert_tokens}
        weights = super().weights(sequence, counts, step)
        return {name: weight if name == "adv" else (1.0 - mu) * weight for name, weight in weights.items()}

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        fields, spec = super().lower(batch)
        return fields, dataclasses.replace(spec, phi=self.phi)


# The two published settings, as kinds of their own in a recipe, whose other keys come on top of them.
PRESETS: dict[str, tuple[type[CHORD], dict[str, Any]]] = {
    "chord-mu": (CHORD, {"mu": {"kind": "cosine", "start": 0.9, "end": 0.05, "steps": 200}, "phi": False}),
    "chord-phi": (CHORD, {"mu": 0.1, "phi": True}),
}
