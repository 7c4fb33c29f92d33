"""Chat templates, tokenizers and discriminators that a run of one's own rows cannot use: exit 2 before it trains."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aapa.engine import cli

RECIPE = """
name = "own"
[model]
source = "model"
[data]
files = "rows.jsonl"
held_out = 0.2
wrap_prompts = true
[rollout]
max_new_tokens = 8
[discriminator]
fit_after = "sft"
prompts = 16
[[stages]]
name = "sft"
steps = 1
learning_rate = 1e-3
objective = { kind = "sft" }
[[stages]]
name = "rl"
steps = 1
learning_rate = 1e-3
rewards = [{ function = "aapa.engine.final_answer:final_answer" }]
objective = { kind = "grpo", group_size = 2, anchor = { weight = 0.1 } }
"""
NO_ASSISTANT = (
    '{% for m in messages %}{% if m.role == "assistant" %}{{ raise_exception("none") }}{% endif %}'
    "{{ m.content }}{% endfor %}"
)


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model" / "chat_template.jinja").write_text(text) and None


def recipe(old: str, new: str) -> Callable[[Path], None]:
    assert old in RECIPE
    return lambda folder: (folder / "r.toml").write_text(RECIPE.replace(old, new, 1)) and None


def few_rows(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:6]))


def rope(folder: Path) -> None:
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 0
    path.write_text(json.dumps(config))


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a template that divides by zero": (
        template("{{ 1 // 0 }}"),
        r"expected messages for the chat template, got .*zero",
    ),
    "a template that looks too far": (
        template("{{ messages[7].content }}"),
        r"expected messages for the chat template",
    ),
    "a template that writes nothing": (
        template("{# none #}"),
        r"expected a chat template that writes a prompt, got ''",
    ),
    "a template without answers": (
        template(NO_ASSISTANT),
        r"tokenizer.chat_template: expected one that renders an assistant's answer, .*, got none",
    ),
    "a tokenizer's configuration that is a list": (
        lambda folder: (folder / "model" / "tokenizer_config.json").write_text("[]") and None,
        r"model.source: expected a tokenizer that transformers reads in model, got",
    ),
    "an angle of nothing": (rope, r"model.source: .*expected rope_theta to be a number above 0, got 0"),
    "too few prompts to fit on": (
        recipe("prompts = 16", "prompts = 3"),
        r"discriminator.prompts: expected 2 held out and 2 others at least .*, got 3 in all",
    ),
    "too few rows to fit on": (few_rows, r"data.files: expected more rows: the discriminator wants 2 .*, got 4"),
    "a layer that is not there": (
        recipe("prompts = 16", "prompts = 16\nlayer = 9"),
        r"discriminator.layer: expected -2 … -1 or 1 … 2, got 9",
    ),
    "a delimiter of many tokens": (
        recipe("weight = 0.1", 'span = ["<think>", "</think>"]'),
        r"stages.1.objective.anchor.span: expected delimiters of one token each, got \d+ for '<think>'",
    ),
}


@pytest.mark.parametrize("words", [["--check"], []], ids=["check", "train"])
@pytest.mark.parametrize("case", CASES)
def test_refused_before_training(
    case: str, words: list[str], good_model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from own_rows import rows, write_rows

    shutil.copytree(good_model, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", rows(100))
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    spoil, pattern = CASES[case]
    spoil(tmp_path)
    capsys.readouterr()
    code = cli.main(["train", "r.toml", *words])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert re.search(pattern, printed), printed
    assert "Traceback" not in printed
    left = {path.name for path in (tmp_path / "runs" / "own").glob("*")}
    assert left <= (set() if words else {"quarantine.jsonl"}), "nothing half a run"
