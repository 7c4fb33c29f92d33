"""Coefficients that change over a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A coefficient as a function of the step: linear warm-up from 0, then from `start` to `end` over `steps`.

    With u = clip((step - warmup) / steps, 0, 1):
    constant: start;  linear: start + (end - start) u;  cosine: end + (start - end)(1 + cos(pi u)) / 2.

    Attributes:
        kind: "constant" | "linear" | "cosine".
        start, end: values at the two ends; `end` is not used by "constant".
        steps: length of the way, in steps of the stage; at least 1 for "linear" and "cosine".
        warmup: steps of linear warm-up before it, from 0 at step 0.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    start: float = 0.0
    end: float = 0.0
    steps: int = 0
    warmup: int = 0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        if self.kind not in ("constant", "linear", "cosine"):
            raise ValueError(f"kind: expected 'constant', 'linear' or 'cosine', got {self.kind!r}")
        if self.kind != "constant" and self.steps < 1:
            raise ValueError(f"steps: expected at least 1 with kind {self.kind!r}, got {self.steps}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected at least 0, got {self.warmup}")

    def __str__(self) -> str:
        """As a recipe has it."""
        numbers = (f"{name} = {getattr(self, name):g}" for name in ("start", "end", "steps", "warmup"))
        return f'{{ kind = "{self.kind}", {", ".join(numbers)} }}'

    def at(self, step: int) -> float:
        """Value at a step, counted from 0."""
        if step < self.warmup:
            return self.start * step / self.warmup
        if self.kind == "constant":
            return self.start
        way = min(max((step - self.warmup) / self.steps, 0.0), 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * way
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * way))

    def peak(self) -> float:
        """The largest value it takes; 0 means that the coefficient never acts."""
        return self.start if self.kind == "constant" else max(self.start, self.end)


def value_at(coefficient: float | Schedule, step: int) -> float:
    """A plain number is a constant schedule."""
    return coefficient.at(step) if isinstance(coefficient, Schedule) else float(coefficient)
