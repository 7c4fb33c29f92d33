"""Rewards, and bounds of rewards, that a run cannot use: exit 2 by `--check`, exit 4 where samples fail in training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from spoiling import edited, recipe

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
TIMEOUT = "timeout = 60.0"
# What replaces a part of the recipe, and a pattern that the one sentence must hold.
CASES = {
    "a time beyond poll's": (
        (TIMEOUT, "timeout = 1e12"),
        r"rewards.timeout: expected a number of at most 1e\+06, got 1000000000000.0",
    ),
    "memory beyond any machine": (
        (TIMEOUT, "memory_gb = 1e10"),
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
def folder(folder: Path) -> Path:
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "r.toml").write_text(recipe(tables=f"[rewards]\n{TIMEOUT}", steps=9))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_check_refuses(folder: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    (old, new), pattern = CASES[case]
    edited("r.toml", old, new)(folder)
    assert cli.main(["train", "r.toml", "--check"]) == 2
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert re.search(pattern, printed), printed


def test_rewards_that_overflow_are_failures_of_samples(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edited("r.toml", "rewards.py:good", "rewards.py:absurd")(folder)
    assert cli.main(["train", "r.toml"]) == 4
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert re.search(r"expected at most 5% of 200 samples without a reward .*, got \d+; the last: .*1e\+308", printed)
