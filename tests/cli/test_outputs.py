"""Places that a run cannot or must not write to are refused before anything is done."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from aapa.engine import cli
from aapa.engine.data_files import check_same_rows
from aapa.engine.errors import UserError
from aapa.engine.report import write_report
from aapa.engine.run_output import MARK, WRITTEN, check_output


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [[], ["--check"]], ids=["run", "check"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("recipe.toml/run", "output: expected a directory to write to, got recipe.toml/run: "),
        ("recipe.toml", "output: expected a directory to write to, got recipe.toml: "),
        (".", "output: expected a new directory or one of a run, got . with recipe.toml that no run wrote; choose"),
        ("other", "got other with metrics.jsonl, checkpoints that no run wrote; choose another --output"),
    ],
)
def test_a_place_that_is_refused(output, message, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text("# my notes\n")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "metrics.jsonl").write_text("{}\n")
    before = files(tmp_path)
    assert cli.main(["train", "mini-if-a-grpo", "--output", output, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", [*WRITTEN, "config.json", "model.safetensors"])
def test_what_no_run_wrote_is_not_written_over(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"with {name} that no run wrote"):
        check_output(tmp_path)


def test_a_name_that_is_too_long(tmp_path, capsys):
    assert cli.main(["train", "mini-if-a-grpo", "--check", "--output", str(tmp_path / ("x" * 300))]) == 2
    assert "expected a shorter path, got '" in capsys.readouterr().err


def test_rows_that_a_run_noted_are_read_with_care(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for text in ("{", "[]", '{"digest": 1}'):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(UserError, match=r"data: expected what the run wrote of the rows .*data\.json, got"):
            check_same_rows(SimpleNamespace(digest="x", rows=1), tmp_path)


def test_places_that_suit(tmp_path):
    check_output(tmp_path / "new" / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.log").write_text("one's own")
    check_output(tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text(MARK + 'name = "x"\n')
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    check_output(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be written to")
def test_a_place_without_permission(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(
        UserError, match="output: expected a directory to write to, got .*: .*shut cannot be written to"
    ):
        check_output(tmp_path / "shut" / "run")


def test_a_report_that_cannot_be_written(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"kind": "train", "stage": "sft", "step": 1, "global_step": 1, "loss/sft": 1.0}\n'
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: expected a page that can be written, got .*file/page\.html"):
        write_report([run], tmp_path / "file" / "page.html")
