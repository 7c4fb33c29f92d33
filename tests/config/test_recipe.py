"""What a recipe refuses, and that the message names the field, what is expected and what it got."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aapa import GRPO, SFT, Anchor, Schedule
from aapa.engine.recipe import Recipe, RecipeError, StageTable, load_recipe, parse_recipe, shipped_recipes
from aapa.engine.recipe.load import SHIPPED

Find = Callable[..., list[str]]


def test_the_valid_recipe(valid: dict[str, Any]) -> None:
    recipe = parse_recipe(valid)
    assert recipe.stages[2].objective == GRPO(anchor=Anchor(weight=0.3))
    assert recipe.stages[1].objective == SFT()
    assert recipe.stages[2].rewards[0].weight == 1.0
    assert recipe.discriminator is not None
    assert (recipe.discriminator.rank, recipe.discriminator.layer) == (128, -1)
    assert recipe.directory() == Path("runs/small")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # unknown keys, near and far from a known one
        ("modle", {}, "modle: expected a known name, perhaps 'model', got 'modle'"),
        (
            "model.hiden_size",
            8,
            "model.hiden_size: expected a known name, perhaps 'hidden_size', got 'hiden_size'",
        ),
        ("checkpoint.qqq", 8, "checkpoint.qqq: expected one of every, keep, got 'qqq'"),
        ("stages.1.step", 8, "stages.1.step: expected a known name, perhaps 'steps', got 'step'"),
        (
            "stages.2.rewards.0.wieght",
            1.0,
            "stages.2.rewards.0.wieght: expected a known name, perhaps 'weight'",
        ),
        (
            "stages.2.objective.group",
            8,
            "stages.2.objective.group: expected a known name, perhaps 'group_size'",
        ),
        (
            "stages.2.objective.anchor.qqq",
            1,
            "stages.2.objective.anchor.qqq: expected one of weight, clip, mode",
        ),
        # missing ones
        ("name", ..., "name: expected a value, got nothing"),
        ("stages", ..., "stages: expected a value, got nothing"),
        ("stages.1.steps", ..., "stages.1.steps: expected a value, got nothing"),
        ("stages.1.objective.kind", ..., "stages.1.objective.kind: expected one of sft, grpo, chord"),
        # wrong types; nothing is converted
        ("seed", "3", "seed: expected a whole number, got '3'"),
        ("seed", 3.0, "seed: expected a whole number, got 3.0"),
        ("seed", True, "seed: expected a whole number, got true"),
        ("name", 3, "name: expected a string, got 3"),
        ("model", 3, "model: expected a table, got 3"),
        ("stages", {}, "stages: expected an array, got {}"),
        ("model.tie_word_embeddings", 1, "model.tie_word_embeddings: expected true or false, got 1"),
        ("rollout.temperature", "hot", "rollout.temperature: expected a number, got 'hot'"),
        ("data.options", [], "data.options: expected a table, got []"),
        ("stages.2.objective", "grpo", "stages.2.objective: expected a table with the key kind, got 'grpo'"),
        (
            "stages.2.objective.group_size",
            "8",
            "stages.2.objective.group_size: expected a whole number, got '8'",
        ),
        (
            "stages.2.objective.anchor.weight",
            "x",
            "stages.2.objective.anchor.weight: expected a number or a table",
        ),
        ("stages.2.objective.anchor", 1, "stages.2.objective.anchor: expected a table"),
        # values out of range
        (
            "name",
            "a/b",
            "name: expected letters, digits, '.', '_' and '-', a letter or digit first, got 'a/b'",
        ),
        ("seed", -1, "seed: expected a number of at least 0, got -1"),
        (
            "parallel.timeout_seconds",
            10**15,
            "parallel.timeout_seconds: expected a number of at most 1e+09, got 1000000000000000",
        ),
        ("model.dtype", "fp16", "model.dtype: expected 'float32' or 'bfloat16', got 'fp16'"),
        ("stages", [], "stages: expected at least 1 of them, got []"),
        ("stages.1.steps", 0, "stages.1.steps: expected a number of at least 1, got 0"),
        ("stages.1.learning_rate", 0, "stages.1.learning_rate: expected a number above 0, got 0"),
        ("stages.1.learning_rate", -1e-3, "stages.1.learning_rate: expected a number above 0, got -0.001"),
        ("stages.1.adam_beta2", 1.0, "stages.1.adam_beta2: expected a number below 1, got 1.0"),
        (
            "stages.1.final_learning_rate_ratio",
            2.0,
            "final_learning_rate_ratio: expected a number of at most 1, got",
        ),
        ("discriminator.held_out", 1.0, "discriminator.held_out: expected a number below 1, got 1.0"),
        (
            "data.task",
            "mini-iff",
            "data.task: expected a known name, perhaps 'mini-if', or 'package.module:Class', got 'mini-iff'",
        ),
        ("rollout.engine", "vllm", "rollout.engine: expected 'auto', 'transformers' or 'megatron', got 'vllm'"),
        (
            "stages.2.rewards.0.function",
            "f",
            "stages.2.rewards.0.function: expected 'package.module:name' or 'file.py:name', got 'f'",
        ),
        ("stages.2.objective.kind", "grop", "stages.2.objective.kind: expected a known name, perhaps 'grpo'"),
        ("stages.2.objective.kind", "no_such:X", "stages.2.objective.kind: expected something importable"),
        (
            "stages.2.objective.kind",
            "math:sqrt",
            "stages.2.objective.kind: expected a dataclass, got 'math:sqrt'",
        ),
        (
            "stages.2.objective.group_size",
            1,
            "stages.2.objective.group_size: expected a whole number of at least 2, got 1",
        ),
        (
            "stages.1.objective.group_size",
            1,
            "stages.1.objective.group_size: expected a whole number of at least 2, got 1",
        ),
        (
            "stages.2.objective.anchor.clip",
            -1.0,
            "stages.2.objective.anchor.clip: expected a positive number, got",
        ),
        (
            "stages.2.objective.anchor.discount",
            2.0,
            "stages.2.objective.anchor.discount: expected a number in",
        ),
        (
            "stages.2.objective.anchor.mode",
            "x",
            "stages.2.objective.anchor.mode: expected 'loss' or 'reward', got",
        ),
        (
            "stages.2.objective.anchor.weight",
            {"kind": "square"},
            "stages.2.objective.anchor.weight.kind: expected 'constant', 'linear' or 'cosine', got 'square'",
        ),
        ("stages.2.objective.aggregation", "dr_grpo", "stages.2.objective.max_response_length: expected"),
    ],
)
def test_refused(problems: Find, path: str, value: Any, message: str) -> None:
    found = problems(path, value)
    assert len(found) == 1, found
    assert found[0].startswith(f"r.toml: {path.rpartition('.')[0]}")
    assert message in found[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "path",
    [
        "rollout.temperature",
        "stages.1.learning_rate",
        "stages.2.rewards.0.weight",
        "stages.2.objective.beta",
        "stages.2.objective.anchor.weight",
        "stages.2.objective.anchor.clip",
        "data.options.anything",
    ],
)
def test_not_finite(problems: Find, path: str, value: float) -> None:
    assert problems(path, value) == [f"r.toml: {path}: expected a finite number, got {value}"]


def test_not_finite_deep_inside(problems: Find) -> None:
    found = problems("data.options", {"a": [1.0, {"b": math.nan}]})
    assert found == ["r.toml: data.options.a.1.b: expected a finite number, got nan"]


def test_all_problems_are_told_at_once(problems: Find) -> None:
    found = problems("seed", -1, "model.dtype", "x", "stages.1.steps", 0, "stages.2.objective.group_size", 1)
    fields = [line.split(": ")[1] for line in found]
    assert fields == ["seed", "model.dtype", "stages.1.steps", "stages.2.objective.group_size"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("parallel.tensor", 4), "parallel.tensor: expected a divisor of num_attention_heads, 2, got 4"),
        (
            ("model.num_attention_heads", 4, "parallel.tensor", 4),
            "parallel.tensor: expected a divisor of num_key_value_heads, 2, got 4",
        ),
        (
            ("model.intermediate_size", 449, "parallel.tensor", 2),
            "parallel.tensor: expected a divisor of intermediate_size, 449, got 2",
        ),
        (("parallel.pipeline", 2), "parallel.pipeline: expected a divisor of num_layers, 3, got 2"),
        (("model.num_key_value_heads", 3), "model.num_key_value_heads: expected a divisor of 2 heads, got 3"),
        (
            ("model.hidden_size", 161),
            "model.hidden_size: expected a multiple of 2 heads where head_dim is not",
        ),
        (("model.head_dim", 81), "model.head_dim: expected an even width for the rotary embedding, got 81"),
        (
            ("rollout.max_new_tokens", 256),
            "rollout.max_new_tokens: expected less than max_position_embeddings, 256",
        ),
        (("stages.2.name", "sft"), "stages.2.name: expected a name of its own, got 'sft' twice"),
        (("stages.2.rewards", []), "stages.2.rewards: expected a reward function for grpo, got none"),
        (
            ("stages.1.rewards", [{"function": "math:sqrt"}]),
            "stages.1.rewards: expected none, for sft uses no rewards, got 1",
        ),
        (("stages.2.data", "corpus"), "stages.2.objective: expected plain sft on the corpus, got grpo"),
        (
            ("stages.0.objective.anchor", {"weight": 0.1}, "discriminator", {"source": "d"}),
            "stages.0.objective: expected plain sft on the corpus, got sft with an anchor",
        ),
        (("stages.1.warmup_steps", 4), "stages.1.warmup_steps: expected at most the stage's 3 steps, got 4"),
        (("discriminator", ...), "discriminator: expected a table, for stage rl is anchored, got nothing"),
        (
            ("discriminator.fit_after", ...),
            "discriminator.fit_after: expected a stage before the first anchored one",
        ),
        (("discriminator.fit_after", "rl"), "first anchored one (base, sft), got 'rl'"),
        (("discriminator.fit_after", "none"), "first anchored one (base, sft), got 'none'"),
        (
            ("discriminator.source", "d"),
            "discriminator.fit_after: expected nothing where source is given, got 'sft'",
        ),
        (
            ("model.source", "dir", "model.num_layers", 3),
            "model.num_layers: expected nothing, for the checkpoint decides it, got 3",
        ),
    ],
)
def test_fields_that_do_not_fit_together(problems: Find, changes: tuple[Any, ...], message: str) -> None:
    found = problems(*changes)
    assert any(message in line for line in found), found


def test_an_anchor_that_never_acts_needs_no_discriminator(problems: Find) -> None:
    assert problems("discriminator", ..., "stages.2.objective.anchor.weight", 0.0) == []
    assert problems("stages.2.objective.anchor.weight", {"kind": "constant", "end": 1.0}) == []
    assert problems("stages.2.objective.anchor.weight", {"kind": "linear", "end": 1.0}) != []


def test_anchored_stages_share_their_granularity_and_span(valid: dict[str, Any]) -> None:
    more = copy.deepcopy(valid["stages"][2])
    more["name"] = "more"
    valid["stages"].append(more)
    parse_recipe(valid)
    more["objective"]["anchor"]["granularity"] = "response"
    with pytest.raises(RecipeError, match="stages.3.objective.anchor.granularity: expected 'sentence' as in"):
        parse_recipe(valid)
    more["objective"]["anchor"] |= {"granularity": "sentence", "span": ["<think>", "</think>"]}
    with pytest.raises(RecipeError, match="stages.3.objective.anchor.span: expected 'all' as in earlier stages, got"):
        parse_recipe(valid)


def test_layouts_that_fit_are_accepted(problems: Find) -> None:
    assert problems("parallel.tensor", 2, "parallel.pipeline", 3) == []


def test_an_objective_of_ones_own(valid: dict[str, Any]) -> None:
    valid["stages"][2]["objective"]["kind"] = "aapa.objectives.grpo:GRPO"
    assert isinstance(parse_recipe(valid).stages[2].objective, GRPO)


def test_a_stage_can_be_built_in_python() -> None:
    objective = GRPO(group_size=4, anchor=Anchor(weight=Schedule("linear", 0.0, 1.0, 10)))
    stage = StageTable(name="rl", steps=1, learning_rate=1e-4, objective=objective)
    assert stage.objective is objective
    with pytest.raises(ValueError, match="group_size"):
        StageTable(name="rl", steps=1, learning_rate=1e-4, objective={"kind": "grpo", "group_size": 1})


def test_a_recipe_cannot_be_changed(valid: dict[str, Any]) -> None:
    recipe = parse_recipe(valid)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


def test_the_input_table_is_left_alone(valid: dict[str, Any]) -> None:
    before = json.dumps(valid)
    parse_recipe(valid)
    assert json.dumps(valid) == before


def test_a_recipe_of_the_package_goes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").mkdir()  # a run directory of that name is not in the way
    assert load_recipe("smoke").model.hidden_size == 32
    (tmp_path / "smoke").rmdir()
    (tmp_path / "smoke").write_text('name = "mine"')
    with pytest.raises(RecipeError, match="smoke: stages: expected a value"):
        load_recipe("smoke")


def test_recipes_of_the_package_are_valid() -> None:
    assert {"smoke", "mini-if-grpo", "mini-if-a-grpo"} <= set(shipped_recipes())
    for name in shipped_recipes():
        if name.startswith("qwen3"):
            continue  # they want rows: test_own_data_recipes.py
        file = SHIPPED / f"{name}.toml"
        # The demonstration's arms begin where its start ends, so their directories are not looked up here.
        recipe = parse_recipe(tomllib.loads(file.read_text())) if name.startswith("demo") else load_recipe(name)
        assert isinstance(recipe, Recipe)
        # The run directory is named after the recipe; the demonstration names its own.
        assert recipe.name == name or name.startswith("demo")


@pytest.mark.parametrize(
    ("text", "message"),
    [("name = ", "r.toml: expected TOML, got"), ("name = 1\nname = 2", "r.toml: expected TOML, got")],
)
def test_not_toml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.toml")


def test_not_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match="expected TOML, got"):
        load_recipe(tmp_path / "r.toml")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe: expected a TOML file or one of .*, got '.*nothing.toml'"):
        load_recipe(tmp_path / "nothing.toml")


def test_one_key_of_a_presets_schedule_leaves_the_others() -> None:
    from aapa.engine.recipe.objective import parse_objective

    chord = parse_objective({"kind": "chord-mu", "mu": {"steps": 50}})
    assert (chord.mu.kind, chord.mu.start, chord.mu.end, chord.mu.steps, chord.phi) == ("cosine", 0.9, 0.05, 50, False)
    assert parse_objective({"kind": "chord-mu", "mu": 0.3}).mu == 0.3


@pytest.mark.parametrize(("first", "second"), [("initial", "rl"), ("start", "rl"), ("rl-best", "rl")])
def test_stages_do_not_take_names_that_a_run_uses(first: str, second: str) -> None:
    stage = {"steps": 1, "learning_rate": 1e-3, "objective": {"kind": "sft"}}
    with pytest.raises(RecipeError, match=r"stages\.0\.name: expected a name that the run does not use itself"):
        parse_recipe({"name": "r", "stages": [stage | {"name": first}, stage | {"name": second}]})
    parse_recipe({"name": "r", "stages": [stage | {"name": "my-best"}, stage | {"name": "rl"}]})


def test_an_objective_that_lacks_methods_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass

    from aapa import Objective
    from aapa.engine.recipe import objective as module

    @dataclass(frozen=True)
    class Half(Objective):
        def components(self, step: int) -> tuple[str, ...]:
            return ("custom",)

    monkeypatch.setattr(module, "load_dotted", lambda path: Half)
    with pytest.raises(ValueError, match=r"^kind: expected a class with lower, weights, got 'mine:Half'"):
        module.parse_objective({"kind": "mine:Half"})
