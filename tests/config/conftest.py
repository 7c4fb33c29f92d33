"""A small recipe that is valid, and helpers to break it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from aapa.engine.recipe import RecipeError, parse_recipe

VALID: dict[str, Any] = {
    "name": "small",
    "discriminator": {"fit_after": "sft"},
    "stages": [
        {"name": "base", "data": "corpus", "steps": 4, "learning_rate": 2e-3, "objective": {"kind": "sft"}},
        {"name": "sft", "steps": 3, "learning_rate": 1e-3, "objective": {"kind": "sft"}},
        {
            "name": "rl",
            "steps": 2,
            "learning_rate": 1e-4,
            "rewards": [{"function": "math:sqrt"}],
            "objective": {"kind": "grpo", "anchor": {"weight": 0.3}},
        },
    ],
}


def put(table: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted path; `...` removes it."""
    target: Any = table
    *above, last = path.split(".")
    for part in above:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    if value is ...:
        del target[last]
    else:
        target[last] = value


@pytest.fixture
def valid() -> dict[str, Any]:
    return copy.deepcopy(VALID)


@pytest.fixture
def problems(valid: dict[str, Any]) -> Callable[..., list[str]]:
    """Problems of the valid recipe after changes given as path, value pairs; empty if it is still valid."""

    def find(*changes: Any) -> list[str]:
        for path, value in zip(changes[::2], changes[1::2], strict=True):
            put(valid, path, value)
        try:
            parse_recipe(valid, label="r.toml")
        except RecipeError as error:
            return str(error).splitlines()
        return []

    return find
