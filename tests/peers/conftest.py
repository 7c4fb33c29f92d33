"""What the tests against peers need: their packages, in the versions that docs/objectives.md speaks of."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest
import torch


def require(distribution: str, version: str) -> None:
    """Fail, with a sentence that says what to do, where a peer is not installed."""
    try:
        found = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = "nothing"
    if found != version:
        pytest.fail(
            f"expected {distribution} {version}, found {found}: run `make test-peers`, which makes .venv-peers",
            pytrace=False,
        )


@pytest.fixture(scope="session")
def needs_trl() -> None:
    require("trl", "1.16.0")


@pytest.fixture(scope="session")
def needs_trinity() -> None:
    require("trinity-rft", "0.6.0")


@pytest.fixture(scope="session")
def model_directory(needs_trl: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy on disk, from which TRL also loads its reference model."""
    import trl_grpo

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("policy")
    trl_grpo.save_model(directory)
    return directory
