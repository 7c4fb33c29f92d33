"""One full-size task for all tests of mini-IF; it is never changed."""

from __future__ import annotations

import pytest

from aapa.engine.tasks.mini_if.task import MiniIF


@pytest.fixture(scope="session")
def task() -> MiniIF:
    return MiniIF()
