"""Whatever a user gets wrong ends with exit code 2 and a sentence that names the place: no traceback, no half a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from own_rows import rows, write_rows
from spoiling import GOOD_REWARD, Spoil, both, chats, config, data, edited, file, lines, refused

from aapa.engine import cli

REWARDS = (
    GOOD_REWARD
    + """
def short(completions, **columns):
    return [1.0]

def scalar(completions, **columns):
    return 1.0

def nan(completions, **columns):
    return [float("nan") for _ in completions]

def text(completions, **columns):
    return ["good" for _ in completions]

def fails(completions, answer, **columns):
    return [{}[a] for a in answer]

def wants(completions, solution):
    return [1.0 for _ in completions]

def hangs(completions, **columns):
    import time
    time.sleep(60)

number = 3
"""
)


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def column(name: str, to: str | None) -> Spoil:
    """Renames a column of every row, or removes it."""

    def spoil(folder: Path) -> None:
        made = []
        for row in rows(100):
            value = row.pop(name)
            made.append(row | ({} if to is None else {to: value}))
        write_rows(folder / "rows.jsonl", made)

    return spoil


def reward(function: str, **more: Any) -> Spoil:
    return edited("r.toml", "rewards.py:good", function)


def without_template(folder: Path) -> None:
    chats(folder)
    (folder / "model" / "chat_template.jinja").unlink()


def parquet(folder: Path) -> None:
    (folder / "rows.parquet").write_bytes(b"PAR1 this is none")
    data('files = "rows.parquet"')(folder)


def saved(folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([{"prompt": "a"}])}).save_to_disk(folder / "saved")
    data('dataset = "saved"\nsplit = "all"')(folder)


def spoilt_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


BAD_LINES = [
    '{"prompt": ',
    b"\xff",
    {"prompt": "a"},
    {"prompt": "", "expert": "b"},
    {"prompt": "zq" * 90, "expert": "b"},
]

# What is spoilt, and a pattern that the one sentence must hold.
CASES: dict[str, tuple[Spoil, str]] = {
    # the recipe
    "no recipe": (file("r.toml", None), r"recipe: expected a TOML file or one of .*, got 'r.toml'"),
    "not TOML": (file("r.toml", "name = "), r"r.toml: expected TOML, got"),
    "a key twice": (edited("r.toml", 'name = "own"', 'name = "own"\nname = "two"'), r"r.toml: expected TOML, got"),
    "an unknown key": (data('file = "rows.jsonl"'), r"data.file: expected a known name, perhaps 'files', got 'file'"),
    "a wrong type": (data("files = 3"), r"data.files: expected a string .*or an array, got 3"),
    "two sources": (data('files = "rows.jsonl"\ndataset = "x"'), r"data.dataset: expected nothing beside data.files"),
    "a task beside": (
        data('files = "rows.jsonl"\ntask = "reasoning"'),
        r"data.task: expected nothing beside data.files",
    ),
    "a split beside": (data('files = "rows.jsonl"\nsplit = "x"'), r"data.split: expected nothing without data.dataset"),
    "nothing held out": (edited("r.toml", "held_out = 0.2", "held_out = 0.0"), r"data.held_out: expected more than 0"),
    "a corpus stage": (
        edited("r.toml", "steps = 2", 'steps = 2\ndata = "corpus"'),
        r"stages.0.data: expected 'examples'",
    ),
    "a scratch model": (
        edited("r.toml", 'source = "model"', "num_layers = 2"),
        r"model.source: expected a Hugging Face",
    ),
    "an unknown split": (
        edited("r.toml", "prompts = 4", 'prompts = 4\nsplit = "x"'),
        r"evaluation.split: expected one of",
    ),
    "a weight that is no number": (
        edited("r.toml", 'good" }', 'good", weight = "x" }'),
        r"weight: expected a number, got",
    ),
    "a weight that is not finite": (edited("r.toml", 'good" }', 'good", weight = nan }'), r"weight: expected a finite"),
    "weights of zero": (edited("r.toml", 'good" }', 'good", weight = 0 }'), r"weight: expected a weight other than 0"),
    "a reward twice": (
        edited("r.toml", 'good" }', 'good" }, { function = "rewards.py:good" }'),
        r"rewards.1.function: expected each function once",
    ),
    "no reward": (edited("r.toml", '{ function = "rewards.py:good" }', ""), r"rewards: expected a reward function"),
    "responses as long as the context": (
        edited("r.toml", "max_new_tokens = 8", "max_new_tokens = 64"),
        r"rollout.max_new_tokens: expected less than the model's context of 64, got 64",
    ),
    # files and rows
    "no file": (data('files = "none.jsonl"'), r"data.files: expected an existing file or a pattern .*none.jsonl'"),
    "a pattern that finds none": (data('files = ["rows.jsonl", "n*.jsonl"]'), r"data.files: .*got '.*/n\*.jsonl'"),
    "a directory": (data('files = "model"'), r"data.files: expected files, got the directory .*model"),
    "another kind of file": (data('files = "rewards.py"'), r"data.files: expected .jsonl, .*, got .*rewards.py"),
    "not Parquet": (parquet, r"data.files: expected a readable Parquet file, got .*rows.parquet"),
    "not gzip": (
        both(file("a.jsonl.gz", "x"), data('files = "a.jsonl.gz"')),
        r"data.files: expected a whole gzip file, got .*a.jsonl.gz, readable at least to line 0: Not a gzipped file",
    ),
    "no saved split": (saved, r"data.split: expected one of train, got 'all'"),
    "an empty file": (file("rows.jsonl", ""), r"data: expected at least one row, got none"),
    "an empty evaluation file": (
        both(file("e.jsonl", "\n"), data('files = "rows.jsonl"\nevaluation_files = "e.jsonl"')),
        r"data.evaluation_files: expected at least one row, got none",
    ),
    "one prompt": (
        lines({"prompt": "a", "expert": "b"}, count=1),
        r"data.files: expected more different prompts than are held out .*, got 1;",
    ),
    "bad rows": (
        lines(*BAD_LINES),
        r"data: expected at most 1 bad rows of 100 .*, got 5\n(?s:.)*rows.jsonl:1: expected",
    ),
    "all rows bad": (file("rows.jsonl", "x\ny\n"), r"got 2\n.*rows.jsonl:1: expected a JSON object"),
    "a key of rows twice": (lines(*['{"prompt": "a", "prompt": "a"}'] * 3), r"rows.jsonl:1: expected each key once"),
    "prompts longer than the context": (
        lines(*[{"prompt": "zq" * 90, "expert": "b"}] * 3),
        r"rows.jsonl:1: prompt: expected at most 56 tokens, for the model's context less .*, got 180",
    ),
    "no expert column": (
        column("expert", None),
        r"data.expert_column: expected one of 'prompt', 'answer', got 'expert'",
    ),
    "another prompt column": (column("prompt", "question"), r"data.prompt_column: expected one of .*'question'"),
    "columns of the engine's names": (
        column("answer", "finished"),
        r"data: expected columns of other names .*finished",
    ),
    # the model
    "no model": (edited("r.toml", 'source = "model"', 'source = "./none"'), r"model.source: expected .*none"),
    "no configuration": (file("model/config.json", None), r"model.source: expected .*config.json"),
    "a broken configuration": (file("model/config.json", "{"), r"model.source: expected"),
    "another architecture": (config("config.json", model_type="gpt2"), r"model.source: .*gpt2"),
    "no weights": (file("model/model.safetensors", None), r"model.source: expected .*model.safetensors"),
    "cut weights": (spoilt_weights, r"model.source: expected a readable safetensors file"),
    "no tokenizer": (file("model/tokenizer.json", None), r"model.source: expected tokenizer files"),
    "a broken tokenizer": (
        file("model/tokenizer.json", "{"),
        r"model.source: expected a tokenizer that transformers reads",
    ),
    "no end of sequence": (
        config("tokenizer_config.json", eos_token=None),
        r"tokenizer.eos_token_id: expected a token",
    ),
    "no chat template": (without_template, r"tokenizer.chat_template: expected one for prompts that are messages"),
    "a broken chat template": (
        both(chats, file("model/chat_template.jinja", "{% for %}")),
        r"tokenizer.chat_template: expected a template that Jinja reads, got line 1",
    ),
    # rewards
    "no reward file": (
        reward("none.py:good"),
        r"rewards.0.function: expected something importable, got '.*none.py:good'",
    ),
    "no reward module": (
        reward("no_such_module:good"),
        r"rewards.0.function: expected something importable, got 'no_such",
    ),
    "no such function": (reward("rewards.py:none"), r"rewards.0.function: expected something importable"),
    "not callable": (reward("rewards.py:number"), r"rewards.0.function: expected a callable, got int"),
    "a syntax error": (
        file("rewards.py", "def good(:\n"),
        r"rewards.0.function: expected a module without errors.*line 1",
    ),
    "an import that fails": (file("rewards.py", "import nothing_at_all\n"), r"rewards.0.function: .*nothing_at_all"),
    "a module that raises": (
        file("rewards.py", "1 / 0\n"),
        r"rewards.0.function: .*ZeroDivisionError.* at rewards.py:1",
    ),
    "a module that exits": (file("rewards.py", "import os\nos._exit(7)\n"), r"rewards.0.function: .*exit code 7"),
    "a column that is missing": (
        reward("rewards.py:wants"),
        r"rewards.0.function: .*wants to ask for .*, got solution",
    ),
}
# Told by a call, so by `--check` or the first step.
CALLED: dict[str, tuple[Spoil, str]] = {
    "one number for many": (reward("rewards.py:scalar"), r"expected a list of \d+ numbers from .*:scalar, got float"),
}
# Failures of samples: a run masks and counts them; the check refuses a function that fails on the first row.
CHECKED: dict[str, tuple[Spoil, str]] = {
    "NaN": (reward("rewards.py:nan"), r"rewards.0.function: expected a number or None for the first row, got .*nan"),
    "a text": (reward("rewards.py:text"), r"expected a number or None for the first row, got .*'good'"),
    "an error": (reward("rewards.py:fails"), r"for the first row, got .*KeyError: 'red' at rewards.py:"),
    "a hang": (
        both(reward("rewards.py:hangs"), edited("r.toml", "[rollout]", "[rewards]\ntimeout = 0.3\n[rollout]")),
        r"for the first row, got .*took longer than 0.3 s",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_training_refuses(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, pattern = CASES[case]
    spoil(folder)
    refused(["train", "r.toml"], pattern, capsys, folder)


@pytest.mark.parametrize("case", CASES | CALLED | CHECKED)
def test_the_check_refuses(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, pattern = (CASES | CALLED | CHECKED)[case]
    spoil(folder)
    refused(["train", "r.toml", "--check"], pattern, capsys, folder)
    assert not (folder / "runs").exists()


def test_the_check_passes_what_is_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines({"prompt": ""}, count=200)(folder)
    assert cli.main(["train", "r.toml", "--check"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "data: 1 of 200 rows set aside" in printed.out
    assert "rows.jsonl:1: prompt: expected a text that is not empty, got ''" in printed.out
    assert "data: 200 rows, 1 set aside; 159 train, 20 dev, 20 test; columns expert, answer" in printed.out
    assert "rewards.py:good: 1 for the first row with its expert" in printed.out
    assert printed.out.endswith("r.toml: ok, 2 stages, run directory runs/own\n")
    assert not (folder / "runs").exists()


def test_all_bad_rows_are_in_the_quarantine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(*BAD_LINES, *BAD_LINES)(folder)
    assert cli.main(["train", "r.toml"]) == 2
    printed = capsys.readouterr().err
    assert "and 5 more" in printed
    assert "all are in runs/own/quarantine.jsonl" in printed
    found = [json.loads(line) for line in (folder / "runs/own/quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in found] == list(range(1, 11))
    assert {row["file"] for row in found} == {str(folder / "rows.jsonl")}
    assert all(row["reason"] for row in found)


@pytest.mark.parametrize(("function", "code"), [("short", 2), ("nan", 4), ("fails", 4)])
def test_rewards_that_go_wrong_while_training(folder: Path, capsys, function: str, code: int) -> None:
    reward(f"rewards.py:{function}")(folder)
    words = ["train", "r.toml", "--stages.sft.steps", "1", "--stages.rl.steps", "9"]
    assert cli.main(words) == code
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    if code == 2:
        assert re.search(r"expected a list of 12 numbers from .*:short, one per completion, got 1", printed)
    else:
        assert "rewards: expected at most 5% of 200 samples without a reward" in printed
