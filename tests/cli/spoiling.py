"""A recipe on rows of one's own, ways to spoil one thing of it, and what a refusal looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_rows import rows, write_rows

from aapa.engine import cli

Spoil = Callable[[Path], object]
GOOD_REWARD = """
def good(prompts, completions, answer, **columns):
    return [float(text.count(a)) for text, a in zip(completions, answer)]
"""


def recipe(
    data: str = "", tables: str = "", steps: int = 2, reward: str = "rewards.py:good", objective: str = ""
) -> str:
    """SFT, then GRPO.

    Args:
        data, objective: more keys of `data`, and of the last stage's objective.
        tables: more tables.
        steps: of each stage.
    """
    return f"""
name = "own"
[model]
source = "model"
[data]
files = "rows.jsonl"
held_out = 0.2
{data}
[rollout]
max_new_tokens = 8
[evaluation]
prompts = 4
final_prompts = 12
{tables}
[[stages]]
name = "sft"
steps = 2
prompts_per_step = 4
learning_rate = 1e-3
objective = {{ kind = "sft" }}
[[stages]]
name = "rl"
steps = {steps}
prompts_per_step = 4
learning_rate = 1e-3
rewards = [{{ function = "{reward}" }}]
objective = {{ kind = "grpo", group_size = 2{objective} }}
"""


def lines(*changed: Any, count: int = 100) -> Spoil:
    """Replaces the first rows."""
    return lambda folder: write_rows(folder / "rows.jsonl", [*changed, *rows(count)[len(changed) :]])


def file(name: str, content: str | bytes | None) -> Spoil:
    """Writes a file, or removes it."""

    def spoil(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def edited(name: str, old: str, new: str) -> Spoil:
    """Replaces a part of a file."""

    def spoil(folder: Path) -> None:
        before = (folder / name).read_text()
        assert old in before
        (folder / name).write_text(before.replace(old, new, 1))

    return spoil


def data(line: str) -> Spoil:
    """Replaces the recipe's `data.files`."""
    return edited("r.toml", 'files = "rows.jsonl"', line)


def chats(folder: Path) -> None:
    """Makes the prompts messages."""
    write_rows(folder / "rows.jsonl", rows(100, chat=True))


def config(name: str, **values: Any) -> Spoil:
    """Changes keys of a JSON file of the model; None removes them."""

    def spoil(folder: Path) -> None:
        path = folder / "model" / name
        found = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """Spoils one thing after the other."""
    return lambda folder: [spoil(folder) for spoil in spoils]


def refused(words: list[str], pattern: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The program ends with exit code 2 and the one sentence, and leaves no half a run."""
    capsys.readouterr()  # what spoiling printed
    code = cli.main(words)
    printed = capsys.readouterr()
    assert code == 2, printed.out + printed.err
    assert "Traceback" not in printed.err
    assert re.search(pattern, printed.err.replace("aapa: ", "")), printed.err
    assert printed.err.startswith("aapa: ")
    run = folder / "runs" / "own"
    left = {path.name for path in run.iterdir()} if run.exists() else set()
    assert left <= (set() if "--check" in words else {"quarantine.jsonl"}), "nothing half a run"
