"""The anchoring term: what it is made of, as hyperparameters (METHOD §3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from aapa.schedules import Schedule, value_at


@dataclass(frozen=True)
class Anchor:
    """Hyperparameters of the anchor L_adv = -sum_t w_t min(rho B, clip(rho) B), added as lambda L_adv (3.3), (4.2).

    B is the centred, calibrated discriminator score of the token's sentence (3.1)-(3.2).

    Attributes:
        weight: lambda, a number or a `Schedule`. 0 removes the term and its cost.
        clip: c of (3.1), in standard deviations of the calibration scores.
        mode: "loss" (3.3), or "reward": lambda times the mean score of the response is added to its reward.
        credit: "sentence" (3.2), or "return": discounted sum over this and the following sentences.
        discount: of the "return" credit, in (0, 1].
        granularity: "sentence", or "response": one score per response.
        span: "all", or a pair of delimiters such as ("<think>", "</think>"), each one token of the tokenizer: the
            anchor then speaks of what lies outside of them.
    """

    weight: float | Schedule = 0.1
    clip: float = 3.0
    mode: Literal["loss", "reward"] = "loss"
    credit: Literal["sentence", "return"] = "sentence"
    discount: float = 1.0
    granularity: Literal["sentence", "response"] = "sentence"
    span: Literal["all"] | tuple[str, str] = "all"

    def __post_init__(self) -> None:
        peak = self.weight.peak() if isinstance(self.weight, Schedule) else self.weight
        if not (math.isfinite(peak) and peak >= 0):
            raise ValueError(f"weight: expected a finite number of at least 0, got {self.weight}")
        if isinstance(self.weight, Schedule) and min(self.weight.start, self.weight.end) < 0:
            raise ValueError(f"weight: expected a schedule that never falls below 0, got {self.weight}")
        if not self.clip > 0:
            raise ValueError(f"clip: expected a positive number, got {self.clip}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: expected a number in (0, 1], got {self.discount}")
        choices = {
            "mode": ("loss", "reward"),
            "credit": ("sentence", "return"),
            "granularity": ("sentence", "response"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")

        pair = isinstance(self.span, tuple | list) and len(self.span) == 2
        if self.span != "all" and not (pair and all(self.span) and self.span[0] != self.span[1]):
            raise ValueError(f"span: expected 'all' or two different delimiters, got {self.span!r}")

    def weight_at(self, step: int) -> float:
        """lambda at a step of the stage."""
        return value_at(self.weight, step)

    @property
    def active(self) -> bool:
        """Whether the term ever acts."""
        return (self.weight.peak() if isinstance(self.weight, Schedule) else self.weight) > 0
