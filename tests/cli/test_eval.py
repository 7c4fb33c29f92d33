"""`aapa eval`: policies of a run, of checkpoints and of directories, judged as the run judged them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from spoiling import recipe

from aapa.engine import cli

REWARDS = """
def letters(completions, answer, **columns):
    return [min(len(text.split("e")), 5) / 5 for text in completions]
"""
RECIPE = recipe(tables="[checkpoint]\nevery = 1", steps=1, reward="rewards.py:letters")
# What an evaluation repeats; times and drift are the run's own.
FIGURES = ("split", "prompts", "pass_rate", "pass_rate_ci", "reward", "length_ratio", "distinct_2", "expert_logprob")


@pytest.fixture(scope="module")
def folder(good_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its rows and rewards."""
    from own_rows import rows, write_rows

    folder = tmp_path_factory.mktemp("eval")
    write_rows(folder / "rows.jsonl", rows(100))
    write_rows(folder / "bench.jsonl", [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows(7)])
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "r.toml").write_text(RECIPE)
    words = ["train", str(folder / "r.toml"), "--model.source", str(good_model), "--output", str(folder / "run")]
    assert cli.main(words) == 0
    return folder


def summary(folder: Path) -> list[dict]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("start", ["run", "recipe", "stage", "checkpoint"])
def test_the_figures_are_those_of_the_run(folder: Path, good_model: Path, tmp_path: Path, start: str) -> None:
    (checkpoint,) = (folder / "run" / "checkpoints").glob("step-00000003")
    words = {
        "run": [str(folder / "run")],
        "recipe": [str(folder / "r.toml"), "--policy", str(folder / "run")],
        "stage": [str(folder / "r.toml"), "--policy", str(folder / "run" / "stages" / "rl")],
        "checkpoint": [str(folder / "run"), "--policy", str(checkpoint)],
    }[start]
    assert cli.main(["eval", *words, "--output", str(tmp_path / "out")]) == 0
    (row,) = summary(tmp_path / "out")
    last = summary(folder / "run")[-1]
    assert last["stage"] == "rl"
    for name in FIGURES:
        assert row[name] == pytest.approx(last[name]), name
    first = summary(folder / "run")[0]
    assert row["expert_logprob"] != pytest.approx(first["expert_logprob"], rel=1e-5), "not the untrained policy's"


def test_rows_of_another_file_need_no_experts(folder: Path, good_model: Path, tmp_path: Path, capsys) -> None:
    words = ["eval", str(folder / "r.toml"), "--policy", str(good_model), "--rows", str(folder / "bench.jsonl")]
    out = ["--output", str(tmp_path / "out")]
    assert cli.main([*words, *out, "--evaluation.samples", "3"]) == 0
    assert cli.main([*words, *out, "--policy", str(folder / "run"), "--evaluation.samples", "3"]) == 0
    first, second = summary(tmp_path / "out")
    assert (first["prompts"], first["split"], first["stage"]) == (7, "test", str(good_model))
    assert (second["prompts"], second["stage"]) == (7, str(folder / "run" / "final"))
    assert first["expert_logprob"] is first["length_ratio"] is None
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [sample["stage"] for sample in samples] == [first["stage"]] * 3 + [second["stage"]] * 3
    printed = capsys.readouterr().out
    assert "passed" in printed
    assert "constraints" not in printed
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "passed" in page
    assert first["stage"] in page


def test_nothing_is_written_that_was_not_asked_for(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert cli.main(["eval", str(folder / "run")]) == 0
    assert list(tmp_path.iterdir()) == []
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["none"], r"recipe: expected a TOML file or one of"),
        (["FOLDER"], r"recipe: expected a recipe or a run directory with recipe.toml, got"),
        (["FOLDER/r.toml", "--policy", "none"], r"policy: expected a directory with config.json, .*, got 'none'"),
        (["FOLDER/run", "--policy", "FOLDER/none"], r"policy: expected a directory with config.json"),
        (["smoke"], r"policy: expected --policy DIR for a recipe whose model begins from scratch, got nothing"),
        (["FOLDER/run", "--rows", "none.jsonl"], r"data.files: expected an existing file .*none.jsonl'"),
        (["FOLDER/run", "--rows", "FOLDER/bad.jsonl"], r"(?s)bad rows of 2 .*bad.jsonl:2: expected a JSON object"),
        (["FOLDER/run", "--rows", "FOLDER/bare.jsonl"], r"rewards.0.function: .*letters to ask for .*, got answer"),
        (["FOLDER/run", "--policy", "FOLDER/cut"], r"checkpoint: expected \d+ bytes in .*cut/__0_0.distcp, got 1"),
        (["FOLDER/run", "--evaluation.final_split", "x"], r"evaluation.final_split: expected one of"),
        (["FOLDER/run", "--output", "FOLDER/r.toml"], r"output: expected a directory of evaluations to write to"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, capsys, words: list[str], pattern: str) -> None:
    import shutil

    (folder / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\nx\n')
    (folder / "bare.jsonl").write_text('{"prompt": "a"}\n')
    if not (folder / "cut").exists():
        shutil.copytree(next((folder / "run" / "checkpoints").iterdir()), folder / "cut")
        (folder / "cut" / "__0_0.distcp").write_bytes(b"x")
    assert cli.main(["eval", *(word.replace("FOLDER", str(folder)) for word in words)]) == 2
    printed = capsys.readouterr().err
    assert re.search(pattern, printed.replace("aapa: ", "")), printed
    assert "Traceback" not in printed
