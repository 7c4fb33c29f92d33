"""How a stage comes to its end: its stop rule, and the best of its policies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aapa.engine.errors import UserError
from aapa.engine.recipe import StageTable


@dataclass
class StageCourse:
    """What a stage's evaluations have decided so far; part of the checkpoint.

    Attributes:
        stopped: whether the stage takes no further step.
        best_value, best_step: the best value of the stage's `best` metric, and the step it was seen after.
    """

    stopped: bool = False
    best_value: float | None = None
    best_step: int | None = None

    @staticmethod
    def judges(table: StageTable) -> bool:
        """Whether the policy after the stage's last step needs an evaluation of its own."""
        return table.best is not None

    def improves(self, table: StageTable, figures: Mapping[str, float], step: int) -> bool:
        """Whether this is the stage's best policy; remembers it."""
        if table.best is None:
            return False
        value = _figure(figures, table.best.metric, f"stages.{table.name}.best.metric")
        sign = 1.0 if table.best.goal == "max" else -1.0
        if not math.isfinite(value):  # distinct_2 of a policy that writes nothing, say
            return False
        if self.best_value is not None and sign * value <= sign * self.best_value:
            return False
        self.best_value, self.best_step = value, step
        return True

    def stops(self, table: StageTable, figures: Mapping[str, float]) -> bool:
        """Whether the stop rule ends the stage here; remembers it."""
        if table.stop is None:
            return False
        value = _figure(figures, table.stop.metric, f"stages.{table.name}.stop.metric")
        low, high = table.stop.at_least, table.stop.at_most
        self.stopped = (low is not None and value >= low) or (high is not None and value <= high)
        return self.stopped


def _figure(figures: Mapping[str, float], metric: str, field: str) -> float:
    value = figures.get(f"eval/{metric}")
    if value is None:
        known = ", ".join(sorted(name.removeprefix("eval/") for name in figures))
        raise UserError(f"{field}: expected one of {known}, got {metric!r}")
    return value
