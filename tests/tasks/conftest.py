"""One full-size task for all tests of mini-IF; it is never changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aapa.engine.tasks.mini_if.task import MiniIF

# Oracles are plain modules beside the tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def task() -> MiniIF:
    return MiniIF()
