"""Chat templates, tokenizers and discriminators that a run of one's own rows cannot use: exit 2 before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spoiling import Spoil, config, edited, file, recipe, refused

RECIPE = recipe(
    "wrap_prompts = true",
    '[discriminator]\nfit_after = "sft"\nprompts = 16',
    reward="aapa.engine.final_answer:final_answer",
    objective=", anchor = { weight = 0.1 }",
)
NO_ASSISTANT = (
    '{% for m in messages %}{% if m.role == "assistant" %}{{ raise_exception("none") }}{% endif %}'
    "{{ m.content }}{% endfor %}"
)


def template(text: str) -> Spoil:
    return file("model/chat_template.jinja", text)


def few_rows(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:6]))


def rope(folder: Path) -> None:
    given = json.loads((folder / "model" / "config.json").read_text())["rope_parameters"]
    config("config.json", rope_parameters=given | {"rope_theta": 0})(folder)


CASES: dict[str, tuple[Spoil, str]] = {
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
        r"prompt through the chat template: expected a text that is not empty, got ''",
    ),
    "a template without answers": (
        template(NO_ASSISTANT),
        r"tokenizer.chat_template: expected one that renders an assistant's answer, .*, got none",
    ),
    "a tokenizer's configuration that is a list": (
        file("model/tokenizer_config.json", "[]"),
        r"model.source: expected a tokenizer that transformers reads in .*/model, got",
    ),
    "an angle of nothing": (rope, r"model.source: .*expected rope_theta to be a number above 0, got 0"),
    "too few prompts to fit on": (
        edited("r.toml", "prompts = 16", "prompts = 3"),
        r"discriminator.prompts: expected 2 held out and 2 others at least .*, got 3 in all",
    ),
    "too few rows to fit on": (few_rows, r"data.files: expected more rows: the discriminator wants 2 .*, got 4"),
    "a layer that is not there": (
        edited("r.toml", "prompts = 16", "prompts = 16\nlayer = 9"),
        r"discriminator.layer: expected -2 … -1 or 1 … 2, got 9",
    ),
    "a delimiter of many tokens": (
        edited("r.toml", "weight = 0.1", 'span = ["<think>", "</think>"]'),
        r"stages.1.objective.anchor.span: expected delimiters of one token each, got \d+ for '<think>'",
    ),
}


@pytest.mark.parametrize("words", [["--check"], []], ids=["check", "train"])
@pytest.mark.parametrize("case", CASES)
def test_refused_before_training(folder: Path, case: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "r.toml").write_text(RECIPE)
    spoil, pattern = CASES[case]
    spoil(folder)
    refused(["train", "r.toml", *words], pattern, capsys, folder)
