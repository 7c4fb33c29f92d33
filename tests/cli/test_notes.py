"""What a recipe asks for that has no effect is said, by the check and by the run."""

from __future__ import annotations

import pytest

from aapa.engine import cli
from aapa.engine.check import recipe_notes
from aapa.engine.recipe import load_recipe

AUTO = ["--stages.rl.objective.dynamic_sampling", "auto"]
NOTE = "stages.rl.objective.dynamic_sampling: 'auto' never acts"


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        ([], True),
        (["--stages.rl.objective.anchor.weight", "0.0"], False),
        (["--stages.rl.objective.anchor.mode", "reward"], False),
        (["--stages.rl.objective.anchor.weight", '{ kind = "linear", start = 1.0, end = 0.0, steps = 2 }'], False),
        (["--stages.rl.objective.anchor.weight", '{ kind = "linear", start = 1.0, end = 0.5, steps = 2 }'], True),
        (["--stages.rl.objective.dynamic_sampling", "off"], False),
    ],
)
def test_dynamic_sampling_that_never_acts(words: list[str], noted: bool) -> None:
    found = recipe_notes(load_recipe("smoke", [*AUTO, *words]))
    assert [line.startswith(NOTE) for line in found] == ([True] if noted else [])


@pytest.mark.parametrize("words", [["--check"], []])
def test_it_is_said(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import aapa.engine.trainer as trainer

    monkeypatch.setattr(trainer, "train", lambda *_: None)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["train", "smoke", *AUTO, *words]) == 0
    assert NOTE in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    if not words:
        assert cli.main(["train", "smoke", *AUTO]) == 0
        assert capsys.readouterr().out == ""
