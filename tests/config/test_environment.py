"""Checks against files and importable names, made before any device is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aapa.engine.recipe import RecipeError, load_recipe
from aapa.engine.recipe.paths import resolve_paths

RECIPE = """\
name = "small"
[[stages]]
name = "rl"
steps = 2
learning_rate = 1e-4
rewards = [{ function = "math:sqrt" }]
objective = { kind = "grpo" }
"""
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
}

Problems = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    (tmp_path / "r.toml").write_text(RECIPE)

    def find(*words: str) -> list[str]:
        try:
            load_recipe(tmp_path / "r.toml", list(words))
        except RecipeError as error:
            return str(error).splitlines()
        return []

    return find


def checkpoint(directory: Path, config: Any) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return directory


def test_a_checkpoint_that_suits(problems: Problems, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", CONFIG)
    assert problems(f"--model.source={source}", "--parallel.tensor", "8", "--parallel.pipeline", "4") == []


def test_the_layout_is_checked_against_the_checkpoint(problems: Problems, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", CONFIG)
    found = problems(f"--model.source={source}", "--parallel.tensor", "16", "--parallel.pipeline", "3")
    assert found == [
        "command line: parallel.tensor: expected a divisor of num_key_value_heads, 8, got 16",
        "command line: parallel.pipeline: expected a divisor of num_layers, 28, got 3",
    ]


def test_key_value_heads_default_to_heads(problems: Problems, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    source = checkpoint(tmp_path / "model", config)
    assert problems(f"--model.source={source}", "--parallel.tensor", "16") == []


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("{", "expected a readable model configuration in {file}"),
        ("[]", "expected a table in {file}"),
        ("{}", "{file}: expected model_type 'llama' or 'qwen3', got None"),
        (CONFIG | {"num_attention_heads": "many"}, "{file}: expected num_attention_heads in config.json to be a whole"),
    ],
)
def test_an_unreadable_configuration(problems: Problems, tmp_path: Path, config: Any, wanted: str) -> None:
    source = checkpoint(tmp_path / "model", config)
    (line,) = problems(f"--model.source={source}")
    assert "model.source: " + wanted.format(file=source / "config.json") in line


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B@refs/pr/1"])
def test_a_name_on_the_hub_is_looked_up_later(problems: Problems, name: str) -> None:
    assert problems("--model.source", name) == []


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c", "a/b@", "~/model"])
def test_what_is_no_name_on_the_hub(problems: Problems, name: str) -> None:
    (line,) = problems("--model.source", name)
    assert "model.source: expected 'scratch', a directory holding config.json or OWNER/NAME on the hub, got" in line


def test_directories_that_are_not_there(problems: Problems, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    (line,) = problems(f"--model.source={missing}")
    assert "model.source: expected 'scratch', a directory holding config.json or OWNER/NAME on the hub, got" in line
    (line,) = problems(f"--discriminator.source={missing}")
    assert "discriminator.source: expected a directory, got" in line
    (line,) = problems(f"--discriminator.trunk={missing}", "--discriminator.fit_after", "rl")
    assert "discriminator.trunk: expected 'base', 'stage_start' or a directory holding config.json, got" in line


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("math:no_such_name", "no attribute 'no_such_name'"),
    ],
)
@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("--data.task", "data.task"),
        ("--stages.rl.rewards.0.function", "stages.0.rewards.0.function"),
    ],
)
def test_names_that_cannot_be_imported(problems: Problems, word: str, field: str, name: str, reason: str) -> None:
    (line,) = problems(word, name)
    assert line.startswith(f"command line: {field}: expected something importable, got {name!r}")
    assert reason in line


def test_directories_are_seen_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files are; from the command line, from the current directory. OWNER/NAME is a directory where there is one."""
    folder, here = tmp_path / "recipes", tmp_path / "here"
    for directory in (folder / "models" / "a", folder / "judge", here / "models" / "b"):
        directory.mkdir(parents=True)
    monkeypatch.chdir(here)

    def resolved(value: str, table: str = "model", field: str = "source", overridden: bool = False) -> str:
        recipe = {table: {field: value}}
        resolve_paths(recipe, folder, [(table, field)] if overridden else [])
        return recipe[table][field]

    assert resolved("models/a") == str(folder / "models" / "a")
    assert resolved("models/b", overridden=True) == str(here / "models" / "b")
    assert resolved("nowhere") == str(folder / "nowhere")
    for word in ("scratch", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"):
        assert resolved(word) == word
    for field in ("source", "trunk", "reward_model"):
        assert resolved("judge", "discriminator", field) == str(folder / "judge")
    assert resolved("base", "discriminator", "trunk") == "base"
