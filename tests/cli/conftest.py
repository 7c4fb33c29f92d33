"""A model, rows and a reward that are as they should be, in a folder of their own, for tests that spoil one thing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))


@pytest.fixture(scope="session")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template; a context of 64 tokens."""
    from own_rows import model_directory

    return model_directory(tmp_path_factory.mktemp("model") / "model")
