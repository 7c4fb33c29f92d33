"""Where a recipe allows several kinds of values, a message says all of them, of the field that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aapa.engine.recipe import RecipeError, parse_recipe

RECIPE: dict[str, Any] = {
    "name": "own",
    "model": {"source": "m"},
    "data": {"files": "rows.jsonl"},
    "discriminator": {"source": "d"},
    "stages": [
        {
            "name": "rl",
            "steps": 2,
            "learning_rate": 1e-3,
            "rewards": [{"function": "rewards.py:good"}],
            "objective": {"kind": "chord", "group_size": 2, "anchor": {}},
        }
    ],
}
ANCHOR = "stages.0.objective.anchor"


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("anchor", "span", "x", f"{ANCHOR}.span: expected 'all' or an array, got 'x'"),
        ("anchor", "span", ["a"], f"{ANCHOR}.span: expected 'all' or an array of at least 2, got ['a']"),
        ("anchor", "span", list("abc"), f"{ANCHOR}.span: expected 'all' or an array of at most 2, got ['a', 'b', 'c']"),
        ("anchor", "span", ["a", 3], f"{ANCHOR}.span.1: expected a string, got 3"),
        ("anchor", "span", {"a": 1}, f"{ANCHOR}.span: expected 'all' or an array, got {{'a': 1}}"),
        ("anchor", "weight", "x", f"{ANCHOR}.weight: expected a number or a table, got 'x'"),
        (
            "anchor",
            "weight",
            {"kind": "linear", "start": 1.0, "end": -1.0, "steps": 5},
            (
                f"{ANCHOR}.weight: expected a schedule that never falls below 0, "
                'got { kind = "linear", start = 1, end = -1, steps = 5, warmup = 0 }'
            ),
        ),
        (
            "objective",
            "mu",
            {"kind": "constant", "start": 2.0},
            (
                "stages.0.objective.mu: expected numbers from 0 to 1, "
                'got { kind = "constant", start = 2, end = 0, steps = 0, warmup = 0 }'
            ),
        ),
        ("data", "files", [3, "a"], "data.files.0: expected a string, got 3"),
        ("data", "files", 3, "data.files: expected a string or an array, got 3"),
    ],
)
def test_one_sentence(table: str, key: str, value: Any, message: str) -> None:
    recipe = copy.deepcopy(RECIPE)
    objective = recipe["stages"][0]["objective"]
    {"anchor": objective["anchor"], "objective": objective, "data": recipe["data"]}[table][key] = value
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe)
    assert str(caught.value) == f"recipe: {message}"
