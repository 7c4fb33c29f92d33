"""The examples of the repository, with a model that needs no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aapa.engine import cli

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own-data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from own_rows import model_directory

    return model_directory(tmp_path / "model", context=512)


def test_own_data_passes_the_check(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(EXAMPLE / "recipe.toml"), "--model.source", str(model), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "data: 120 rows, 0 set aside; 96 train, 12 dev, 12 test; columns expert, answer" in printed
    assert "rewards.py:correct: 1 for the first row with its expert" in printed


def test_own_data_trains_all_its_stages(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what the recipe names is seen from its own folder
    words = ["train", str(EXAMPLE / "recipe.toml"), "--model.source", str(model), "--output", "run"]
    words += ["--rollout.max_new_tokens", "24", "--discriminator.steps", "10", "--discriminator.prompts", "20"]
    words += ["--stages.sft.steps", "2", "--stages.rl.steps", "2", "--stages.rl.prompts_per_step", "4"]
    assert cli.main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["stage"] for row in summary] == ["start", "sft", "rl"]
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if row["kind"] == "train" and row["stage"] == "rl"]
    assert len(steps) == 2
    assert all("anchor/mean" in row and row["reward/failed"] == 0 and 1 <= row["reward/tokens"] <= 24 for row in steps)
