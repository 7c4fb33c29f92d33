"""What a stage's evaluations decide."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from aapa.engine.course import StageCourse


@pytest.mark.parametrize(("goal", "best"), [("max", 2), ("min", 1)])
def test_a_figure_that_is_no_number_is_never_the_best(goal: str, best: int) -> None:
    table = SimpleNamespace(name="rl", best=SimpleNamespace(metric="distinct_2", goal=goal))
    course = StageCourse()
    for step, value in enumerate([math.nan, 0.8, 0.9, math.nan, 0.85]):
        course.improves(table, {"eval/distinct_2": value}, step)
    assert course.best_step == best
