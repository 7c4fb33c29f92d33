"""A recipe survives being written and read; its hash and the comparison on resume see what matters."""

from __future__ import annotations

import dataclasses
import datetime
import math
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa import GRPO, SFT, Anchor, Schedule
from aapa.engine.recipe import Recipe, parse_recipe
from aapa.engine.recipe.toml_text import toml_text

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
positive = st.floats(1e-12, 1e12)
schedules = st.builds(
    Schedule,
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    start=st.floats(0, 10),
    end=st.floats(0, 10),
    steps=st.integers(1, 1000),
    warmup=st.integers(0, 1000),
)


def anchors(mode: st.SearchStrategy[str]) -> st.SearchStrategy[Anchor | None]:
    return st.none() | st.builds(
        Anchor,
        weight=st.floats(0, 10) | schedules,
        clip=positive,
        mode=mode,
        credit=st.sampled_from(["sentence", "return"]),
        discount=st.floats(0.01, 1),
    )


sft = st.builds(SFT, anchor=anchors(st.just("loss")), group_size=st.integers(2, 64))
grpo = st.builds(
    GRPO,
    group_size=st.integers(2, 64),
    beta=st.floats(0, 10),
    clip_low=st.floats(0, 0.99),
    clip_high=st.floats(0, 10),
    aggregation=st.sampled_from(["dapo", "grpo"]),
    scale=st.sampled_from(["group", "batch", "none"]),
    updates_per_rollout=st.integers(1, 8),
    epochs_per_rollout=st.integers(1, 8),
    anchor=anchors(st.sampled_from(["loss", "reward"])),
)
leaves = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.dates()
)
tables = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), leaves, max_size=4),
    lambda inner: st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        inner | st.lists(inner | leaves, max_size=3),
        max_size=4,
    ),
    max_leaves=8,
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    stages: list[dict[str, Any]] = [
        {"name": "first", "data": "corpus", "steps": 1, "learning_rate": 1e-3, "objective": SFT()}
    ]
    shared = {
        "granularity": draw(st.sampled_from(["sentence", "response"])),
        "span": draw(st.sampled_from(["all", ("<think>", "</think>")])),
    }
    for index in range(draw(st.integers(0, 3))):
        objective = draw(sft | grpo)
        if objective.anchor is not None:  # what all anchored stages share
            anchor = dataclasses.replace(objective.anchor, **shared)
            objective = dataclasses.replace(objective, anchor=anchor)
        stages.append(
            {
                "name": f"{draw(names)}-{index}",
                "steps": draw(st.integers(1, 10**9)),
                "learning_rate": draw(positive),
                "warmup_steps": draw(st.integers(0, 1)),
                "decay": draw(st.sampled_from(["constant", "linear", "cosine"])),
                "weight_decay": draw(st.floats(0, 1)),
                "adam_eps": draw(positive),
                "rewards": [{"function": "a.b:c", "weight": draw(st.floats(-9, 9).filter(bool))}]
                if objective.needs_rewards
                else [],
                "objective": objective,
            }
        )
    return parse_recipe(
        {
            "name": draw(names),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "output": draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
            "model": draw(st.sampled_from([{}, {"num_layers": 4}, {"source": "some/dir"}])),
            "data": {"options": draw(tables)},
            "discriminator": {"fit_after": "first", "layer": draw(st.integers(-9, 9))},
            "stages": stages,
        }
    )


@settings(deadline=None)
@given(recipes())
def test_a_recipe_is_read_back_as_it_was_written(recipe: Recipe) -> None:
    again = parse_recipe(tomllib.loads(recipe.to_toml()))
    assert again == recipe
    assert again.hash() == recipe.hash()
    assert again.resume_problems(recipe) == []
    assert again.to_toml() == recipe.to_toml()


@settings(deadline=None)
@given(tables)
def test_toml_text_is_read_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_toml_text_leaves_none_out_and_refuses_what_toml_cannot_hold() -> None:
    assert tomllib.loads(toml_text({"a": None, "b": {"c": None, "d": [{"e": None}]}})) == {"b": {"d": [{}]}}
    time = datetime.datetime(2026, 1, 2, 3, 4, 5)
    assert tomllib.loads(toml_text({"t": time})) == {"t": time}
    for value in (math.nan, math.inf, object()):
        with pytest.raises(ValueError, match="toml: expected"):
            toml_text({"a": value})


# One field of each kind: path, another value, whether a run may be resumed with it.
CHANGES = [
    ("seed", 1, False),
    ("output", "elsewhere", True),
    ("model.hidden_size", 128, False),
    ("parallel.tensor", 2, True),
    ("parallel.micro_batch_tokens", 99, True),
    ("rollout.temperature", 0.5, False),
    ("rollout.memory_limit_gb", 2.0, True),
    ("evaluation.every", 3, True),
    ("evaluation.seed", 3, False),
    ("checkpoint.keep", 3, True),
    ("data.options.seed", 3, False),
    ("discriminator.rank", 3, False),
    ("stages.1.learning_rate", 3e-3, False),
    ("stages.2.objective.anchor.weight", 0.4, False),
    ("stages.2.objective.group_size", 4, False),
    ("stages.2.rewards.0.weight", 0.4, False),
]


@pytest.mark.parametrize(("path", "value", "changeable"), CHANGES)
def test_the_hash_sees_what_decides_the_outcome(valid: dict[str, Any], path: str, value: Any, changeable: bool) -> None:
    before = parse_recipe(valid)
    target: Any = valid
    *above, last = path.split(".")
    for part in above:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = value
    after = parse_recipe(valid)
    assert (after.hash() == before.hash()) is changeable
    problems = after.resume_problems(before)
    assert after.resume_problems(before.table()) == problems
    if changeable:
        assert problems == []
    else:
        assert len(problems) == 1
        assert problems[0].startswith(f"{path}: expected ")
        assert problems[0].endswith(f"as in the run directory, got {value!r}")


def test_resume_sees_a_stage_added_or_removed(valid: dict[str, Any]) -> None:
    before = parse_recipe(valid)
    valid["stages"].append({"name": "more", "steps": 1, "learning_rate": 1e-4, "objective": {"kind": "sft"}})
    after = parse_recipe(valid)
    assert "stages.3.name: expected None as in the run directory, got 'more'" in after.resume_problems(before)
    assert "stages.3.name: expected 'more' as in the run directory, got None" in before.resume_problems(after)


def test_resume_compares_with_a_recipe_of_another_version(valid: dict[str, Any]) -> None:
    recipe = parse_recipe(valid)
    table = recipe.table()
    table["model"]["gone"] = 1
    del table["rollout"]["temperature"]
    assert recipe.resume_problems(table) == [
        "rollout.temperature: expected None as in the run directory, got 1.0",
        "model.gone: expected 1 as in the run directory, got None",
    ]


def test_the_hash_is_the_same_in_every_process(valid: dict[str, Any]) -> None:
    valid["data"] = {"options": {"b": 1, "a": [1.5, "x"]}}
    first = parse_recipe(valid).hash()
    valid["data"] = {"options": {"a": [1.5, "x"], "b": 1}}
    assert parse_recipe(valid).hash() == first
    assert len(first) == 64
