"""Overrides on the command line: how they are read, where they land, whom errors blame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aapa import GRPO, Anchor, Schedule
from aapa.engine.recipe import Recipe, RecipeError, load_recipe

RECIPE = """\
name = "small"
[discriminator]
fit_after = "sft"
[[stages]]
name = "sft"
steps = 3
learning_rate = 1e-3
objective = { kind = "sft" }
[[stages]]
name = "rl"
steps = 2
learning_rate = 1e-4
rewards = [{ function = "math:sqrt" }, { function = "math:exp" }]
[stages.objective]
kind = "grpo"
anchor = { weight = 0.3 }
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    (tmp_path / "r.toml").write_text(RECIPE)

    def with_overrides(*words: str) -> Recipe:
        return load_recipe(tmp_path / "r.toml", list(words))

    return with_overrides


Load = Callable[..., Recipe]


def test_without_any(load: Load) -> None:
    assert load().stages[1].objective == GRPO(anchor=Anchor(weight=0.3))


@pytest.mark.parametrize("words", [("--stages.1.steps", "20"), ("--stages.1.steps=20",), ("--stages.rl.steps", "20")])
def test_by_number_by_name_and_with_equals(load: Load, words: tuple[str, ...]) -> None:
    recipe = load(*words)
    assert [stage.steps for stage in recipe.stages] == [3, 20]


def test_values_are_toml_and_else_text(load: Load) -> None:
    recipe = load(
        "--stages.rl.learning_rate",
        "1e-5",
        "--parallel.tensor=2",
        "--model.tie_word_embeddings",
        "false",
        "--name",
        "other-name",
        '--output="a b"',
        "--rollout.engine=transformers",
        "--data.options",
        "{ seed = 3, list = [1, 2] }",
    )
    assert recipe.stages[1].learning_rate == 1e-5
    assert (recipe.parallel.tensor, recipe.model.tie_word_embeddings) == (2, False)
    assert (recipe.name, recipe.output, recipe.rollout.engine) == ("other-name", "a b", "transformers")
    assert recipe.data.options == {"seed": 3, "list": [1, 2]}


def test_missing_tables_are_made(load: Load) -> None:
    assert load("--evaluation.every", "5").evaluation.every == 5


def test_inside_an_objective_and_a_reward(load: Load) -> None:
    recipe = load("--stages.rl.objective.anchor.clip", "2.0", "--stages.rl.rewards.1.weight", "-0.5")
    assert recipe.stages[1].objective == GRPO(anchor=Anchor(weight=0.3, clip=2.0))
    assert [reward.weight for reward in recipe.stages[1].rewards] == [1.0, -0.5]


def test_a_schedule_replaces_a_number(load: Load) -> None:
    value = '{ kind = "linear", start = 0.0, end = 1.0, steps = 2 }'
    anchor = load("--stages.rl.objective.anchor.weight", value).stages[1].objective.anchor
    assert anchor.weight == Schedule("linear", 0.0, 1.0, 2)


def test_the_last_one_wins(load: Load) -> None:
    assert load("--seed", "1", "--seed=2").seed == 2


def test_a_negative_number_is_a_value_not_an_option(load: Load) -> None:
    assert load("--discriminator.layer", "-2").discriminator.layer == -2  # type: ignore[union-attr]


def test_a_text_with_line_breaks_sets_nothing_else(load: Load) -> None:
    with pytest.raises(RecipeError, match="rollout.temperature: expected a number, got"):
        load("--rollout.temperature", "1.0\nseed = 5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed",), "command line: seed: expected a value, got nothing"),
        (("seed", "1"), "command line: expected an override like --section.key VALUE, got 'seed'"),
        (
            ("--stages.2.steps", "1"),
            "command line: stages.2: expected one of sft, rl, or a number below 2, got '2'",
        ),
        (
            ("--stages.sftt.steps", "1"),
            "command line: stages.sftt: expected a known name, perhaps 'sft', or a number",
        ),
        (("--stages.-1.steps", "1"), "command line: stages.-1: expected one of sft, rl, or a number below 2"),
        (
            ("--stages.rl.rewards.2.weight", "1"),
            "command line: stages.1.rewards.2: expected a number below 2, got '2'",
        ),
        (("--stages.rl.steps.x", "1"), "command line: stages.1.steps.x: expected a table or an array"),
        (("--model..x", "1"), "expected a key, got nothing"),
        (("--seed", "x"), "command line: seed: expected a whole number, got 'x'"),
        (
            ("--modle.dtype", "float32"),
            "command line: modle: expected a known name, perhaps 'model', got 'modle'",
        ),
        (
            ("--stages.rl.objective.group_size", "1"),
            "command line: stages.1.objective.group_size: expected a whole number of at least 2",
        ),
        (
            ("--parallel.tensor", "4"),
            "command line: parallel.tensor: expected a divisor of num_attention_heads, 2",
        ),
    ],
)
def test_refused(load: Load, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(*words)
    assert message in str(caught.value)


def test_the_file_is_blamed_for_its_own_mistakes_only(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("steps = 3", "steps = 0"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.toml", ["--seed", "-1"])
    assert str(caught.value).splitlines() == [
        "command line: seed: expected a number of at least 0, got -1",
        "r.toml: stages.0.steps: expected a number of at least 1, got 0",
    ]
