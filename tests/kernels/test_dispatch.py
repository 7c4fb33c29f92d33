"""Which implementation is chosen, and how often that is said."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from aapa.kernels import dispatch


@pytest.fixture(autouse=True)
def fresh_dispatch() -> Iterator[None]:
    """Dispatch that has chosen nothing yet, before and after."""
    caches = (dispatch._choose, dispatch._extension_obstacle, dispatch._package_obstacle)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_threads_that_come_together_say_it_once(monkeypatch, caplog):
    def slow(op: str, kind: str) -> str:
        time.sleep(0.02)
        return "not today"

    monkeypatch.setitem(dispatch.OBSTACLES, "triton", slow)
    monkeypatch.setitem(dispatch.OBSTACLES, "native", slow)
    caplog.set_level(logging.INFO, "aapa.kernels")
    together = Barrier(16)

    def first_use(_: int) -> str:
        together.wait()
        return dispatch.resolve("linear_logprob").__name__

    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(first_use, range(16)))
    assert found == {"aapa.kernels.reference.linear_logprob"}
    assert [record.getMessage() for record in caplog.records] == ["linear_logprob on cpu: reference"]


def test_a_gpu_without_triton_is_warned_about_once(monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    for _ in range(2):
        for op in ("linear_logprob", "policy_loss"):
            assert dispatch._choose(op, "cuda") == "reference"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["operations run on their torch references, which is slower: Triton is not installed"]
