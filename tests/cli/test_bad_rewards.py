"""Rewards, and bounds of rewards, that a run cannot use: exit 2 by `--check`, exit 4 where samples fail in training."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from aapa.engine import cli

REWARDS = """
def good(completions, **columns):
    return [1.0 for _ in completions]

def absurd(completions, **columns):
    return [1e308 for _ in completions]

def generated(completions, **columns):
    yield 1.0
    raise ValueError("no more")

def unsized(completions, **columns):
    import numpy
    return numpy.array(1.0)
"""
RECIPE = """
name = "own"
[model]
source = "model"
[data]
files = "rows.jsonl"
held_out = 0.2
[rollout]
max_new_tokens = 8
[evaluation]
prompts = 4
final_prompts = 4
[rewards]
timeout = 60.0
[[stages]]
name = "rl"
steps = 9
prompts_per_step = 4
learning_rate = 1e-3
rewards = [{ function = "rewards.py:good" }]
objective = { kind = "grpo", group_size = 2 }
"""
# What replaces a part of the recipe, and a pattern that the one sentence must hold.
CASES = {
    "a time beyond poll's": (
        ("timeout = 60.0", "timeout = 1e12"),
        r"rewards.timeout: expected a number of at most 1e\+06, got 1000000000000.0",
    ),
    "memory beyond any machine": (
        ("timeout = 60.0", "memory_gb = 1e10"),
        r"rewards.memory_gb: expected a number of at most 1e\+06, got 10000000000.0",
    ),
    "no dimensions": (
        ("rewards.py:good", "rewards.py:unsized"),
        r"rewards.0.function: expected a list of 1 numbers from .*:unsized, got ndarray of 0 dimensions",
    ),
    "a generator that raises": (
        ("rewards.py:good", "rewards.py:generated"),
        r"rewards.0.function: .* for the first row, got .*: ValueError: no more at rewards.py:10",
    ),
    "more than float32 holds": (
        ("rewards.py:good", "rewards.py:absurd"),
        r"rewards.0.function: .* for the first row, got .*within float32, at most 3.4e\+38, got 1e\+308",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from own_rows import rows, write_rows

    shutil.copytree(good_model, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", rows(100))
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


def write(folder: Path, old: str, new: str) -> None:
    assert old in RECIPE
    (folder / "r.toml").write_text(RECIPE.replace(old, new, 1))


@pytest.mark.parametrize("case", CASES)
def test_the_check_refuses(folder: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    change, pattern = CASES[case]
    write(folder, *change)
    assert cli.main(["train", "r.toml", "--check"]) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert re.search(pattern, printed), printed


def test_rewards_that_overflow_are_failures_of_samples(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(folder, "rewards.py:good", "rewards.py:absurd")
    assert cli.main(["train", "r.toml"]) == 4
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert re.search(r"expected at most 5% of 200 samples without a reward .*, got \d+; the last: .*1e\+308", printed)
