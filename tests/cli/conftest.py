"""A model, rows and a reward that are as they should be, in a folder of their own, for tests that spoil one thing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "engine")]


@pytest.fixture(scope="session")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template; a context of 64 tokens."""
    from own_rows import model_directory

    return model_directory(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def folder(tmp_path: Path, good_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with r.toml, rows.jsonl, rewards.py and model/."""
    from own_rows import rows, write_rows
    from spoiling import GOOD_REWARD, recipe

    shutil.copytree(good_model, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", rows(200))
    (tmp_path / "rewards.py").write_text(GOOD_REWARD)
    (tmp_path / "r.toml").write_text(recipe())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path
