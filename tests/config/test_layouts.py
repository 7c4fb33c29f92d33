"""Layouts that cannot work are refused by name, with the reason; all others pass."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": True}, "parallel.sequence: expected false with tensor = 1, where nothing is split, got true"),
        ({"virtual": 2}, "parallel.virtual: expected 1 with pipeline = 1, where no stage waits for another, got 2"),
        (
            {"pipeline": 2, "virtual": 2, "layers": 6},
            "parallel.virtual: expected a divisor of the 3 layers of a stage, got 2",
        ),
        ({"pipeline": 4, "layers": 6}, "parallel.pipeline: expected a divisor of num_layers, 6, got 4"),
        ({"tensor": 3}, "parallel.tensor: expected a divisor of num_attention_heads, 2, got 3"),
        ({"recompute": "some"}, "parallel.recompute: expected 'none', 'selective' or 'full'"),
        ({"context": 0}, "parallel.context: expected"),
    ],
)
def test_what_cannot_work_is_refused(problems: Any, changes: dict[str, Any], message: str) -> None:
    paths = {"layers": "model.num_layers"}
    pairs = [(paths.get(name, f"parallel.{name}"), value) for name, value in changes.items()]
    found = problems(*[item for pair in pairs for item in pair])
    assert any(message in line for line in found), found


def test_everything_at_once_is_a_layout(problems: Any) -> None:
    table = {
        "tensor": 2,
        "sequence": True,
        "pipeline": 2,
        "virtual": 2,
        "context": 2,
        "distributed_optimizer": True,
        "overlap": True,
        "recompute": "full",
    }
    assert problems("parallel", table, "model.num_layers", 8) == []
