"""Reward functions: what they are called with, how they are bounded, and what becomes of samples they fail on."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import pytest

from aapa.engine.errors import TrainingFault, UserError
from aapa.engine.examples import Example
from aapa.engine.recipe import RewardTable
from aapa.engine.reward_process import Bounds
from aapa.engine.rewards import FailureWindow, LocalReward, RewardPool, Rewards, call_keywords

FUNCTIONS = """
import asyncio, json, os, sys, time
from multiprocessing.connection import Connection
import numpy as np

calls = 0

def both(prompts, completions, topic, finished):
    assert prompts == ["p0", "p1"], prompts
    assert topic == ["t0", "t1"]
    return [float(f) for f in finished]

def half(completions, **columns):
    return [0.5 if c == "x" else None for c in completions]

def arrays(completions, **columns):
    return np.arange(len(completions), dtype=np.float32)

async def waits(completions, **columns):
    await asyncio.sleep(0)
    return [len(c) for c in completions]

def picky(completions, **columns):
    if "bad" in completions:
        raise ValueError("cannot judge 'bad'")
    return [1.0] * len(completions)

def hangs(completions, **columns):
    if "bad" in completions:
        time.sleep(60)
    return [1.0] * len(completions)

def dies(completions, **columns):
    if "bad" in completions:
        os._exit(3)
    return [1.0] * len(completions)

def eats(completions, **columns):
    if "bad" in completions:
        return [len(bytearray(10**10))]
    return [1.0] * len(completions)

def odd(completions, **columns):
    values = {"nan": float("nan"), "text": "good", "list": [1.0], "none": None, "huge": float("inf"), "true": True}
    values |= {"array": np.ones((1, 2)), "digit": np.str_("1"), "complex": np.complex64(1), "scalar": np.float64(1.0)}
    return [values.get(c, 1.0) for c in completions]

def absurd(completions, **columns):
    return [float(c) for c in completions]

def generated(completions, **columns):
    for text in completions:
        if text == "bad":
            raise ValueError("cannot judge 'bad'")
        yield 1.0

async def cancelled(completions, **columns):
    if "bad" in completions:
        raise asyncio.CancelledError("cannot judge 'bad'")
    return [1.0] * len(completions)

class Wordless(BaseException):
    def __str__(self):
        raise KeyError("no words")

def wordless(completions, **columns):
    if "bad" in completions:
        raise Wordless
    return [1.0] * len(completions)

def unsized(completions, **columns):
    return np.array(1.0)

def unordered(completions, **columns):
    return {1.0, 2.0}

def limit(completions, **columns):
    import resource
    return [float(resource.getrlimit(resource.RLIMIT_AS)[0])] * len(completions)

def short(completions, **columns):
    return [1.0] * (len(completions) - 1)

def single(completions, **columns):
    return 1.0

def words(completions, **columns):
    return "good"

def logs(completions, log_metric, log_extra, trainer_state, **columns):
    log_extra("seen", completions)
    log_metric("words", 3)
    log_metric("lone " + chr(0xD800), np.float32(1.0))
    log_metric("nothing", float("nan"))
    return [float(trainer_state.global_step)] * len(completions)

def counts(completions, **columns):
    global calls
    calls += 1
    return [float(calls)] * len(completions)

def pid(completions, **columns):
    return [float(os.getpid())] * len(completions)

def forks(completions, **columns):
    forked = os.fork()
    if forked:
        os.waitpid(forked, 0)
    return [float(forked != 0)] * len(completions)

def twice(completions, **columns):
    if "bad" in completions:
        answer = {"call": 1, "values": [9.0] * len(completions), "logged": []}
        Connection(os.dup(int(sys.argv[1]))).send_bytes(json.dumps(answer).encode())
    return [1.0] * len(completions)

def child(completions, **columns):
    import subprocess, sys
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", columns["topic"][0]])
    time.sleep(60)

def wants(completions, solution, **columns):
    return [1.0] * len(completions)

def positional(prompts, completions, /):
    return [1.0] * len(completions)

number = 3
"""


@pytest.fixture
def pool(tmp_path: Path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    made = RewardPool(Bounds(timeout=2.0))
    yield made
    made.close()


@pytest.fixture
def call(pool: RewardPool, tmp_path: Path):
    """Rewards of completions under functions of the file, given as name or (name, weight)."""

    def rewards(*names, completions=("x", "y"), **keywords) -> list[float]:
        pairs = [name if isinstance(name, tuple) else (name, 1.0) for name in names]
        tables = [RewardTable(function=f"{tmp_path}/functions.py:{name}", weight=weight) for name, weight in pairs]
        opened = pool.open(tables, "stages.0.rewards")
        rewards.last = opened
        finished = keywords.pop("finished", [True] * len(completions))
        return opened(examples(len(completions)), list(completions), finished, **keywords)

    return rewards


def examples(count: int) -> list[Example]:
    return [Example(i, f"p{i}", ("e",), {"topic": f"t{i}"}) for i in range(count)]


def same(values: list[float], expected: list[float | None]) -> bool:
    return [None if math.isnan(value) else value for value in values] == expected


def test_columns_arrive_and_weights_count(call) -> None:
    assert call(("both", 2.0), "half", finished=[True, False]) == [2.5, 0.0], "None means: it does not apply"
    assert same(call("half", completions=["x", "z"]), [0.5, None]), "a sample that no function scores is masked"


def test_what_may_be_returned(call) -> None:
    assert call("arrays") == [0.0, 1.0]
    assert call("waits", completions=["a", "bcd"]) == [1.0, 3.0]
    values = call("odd", completions=["nan", "text", "list", "none", "huge", "true", "else"])
    assert same(values, [None, None, None, None, None, 1.0, 1.0])
    assert same(call("odd", completions=["array", "digit", "complex", "scalar"]), [None, None, None, 1.0])
    assert "expected a number or None, got np.complex64(1+0j)" in call.last.last_failure


def test_what_float32_does_not_hold_is_no_reward(call) -> None:
    assert same(call("absurd", completions=["3", "-1e308"]), [3.0, None])
    assert "absurd: expected a number within float32, at most 3.4e+38, got -1e+308" in call.last.last_failure
    assert same(call(("absurd", 1e30), completions=["1", "1e30"]), [1e30, None])
    assert call.last.last_failure == "the weighted sum: expected a number within float32, at most 3.4e+38, got 1e+60"
    assert same(call(("absurd", 1e300), completions=["1e-300", "1e30"]), [1.0, None])
    assert call.last.last_failure == "the weighted sum: expected a finite number or None, got inf"


def test_memory_beyond_what_the_shell_allows_is_what_the_shell_allows(call, pool, tmp_path, monkeypatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -v 8000000\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    pool.bounds = Bounds(timeout=20.0, memory_gb=1e6)
    assert call("limit") == [8000000.0 * 1024] * 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("picky", "ValueError: cannot judge 'bad' at functions.py:"),
        ("hangs", "took longer than 0.3 s"),
        ("generated", "ValueError: cannot judge 'bad' at functions.py:"),
        ("cancelled", "CancelledError: cannot judge 'bad' at functions.py:"),
        ("wordless", "Wordless: its text raises KeyError at functions.py:"),
        ("dies", "its process ended with exit code 3"),
    ],
)
def test_only_the_failing_sample_is_masked(call, pool: RewardPool, name: str, reason: str) -> None:
    pool.bounds = Bounds(timeout=0.3)
    values = call(name, ("half", 2.0), completions=["x", "bad", "x", "y"])
    assert same(values, [2.0, None, 2.0, 1.0])
    assert reason in call.last.last_failure
    assert call(name, completions=["x"]) == [1.0], "the process is there again"


def test_memory_is_bounded(call, pool: RewardPool) -> None:
    pool.bounds = Bounds(timeout=20.0, memory_gb=4.0)
    assert same(call("eats", completions=["x", "bad"]), [1.0, None])
    assert "MemoryError" in call.last.last_failure


def test_a_batch_that_always_hangs_is_not_tried_for_ever(call, pool: RewardPool) -> None:
    pool.bounds = Bounds(timeout=0.2)
    began = time.monotonic()
    assert same(call("hangs", completions=["bad"] * 40), [None] * 40)
    assert "not tried again after 3" in call.last.last_failure
    assert time.monotonic() - began < 40 * 0.2 + 1.0


def test_children_of_a_function_die_with_it(pool: RewardPool, tmp_path: Path) -> None:
    pool.bounds = Bounds(timeout=0.5)
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    rewards = pool.open([RewardTable(function=f"{tmp_path}/functions.py:child")], "stages.0.rewards")
    assert same(rewards([Example(0, "p", (), {"topic": mark})], ["x"], [True]), [None])
    for _ in range(100):  # a killed process takes a moment to go
        running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(p)]
        if not running:
            break
        time.sleep(0.1)
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_process_is_another_one_and_lasts(call) -> None:
    first, second = call("pid"), call("pid")
    assert first == second
    assert first[0] != os.getpid()
    assert call("counts") == [1.0, 1.0]
    assert call("counts") == [2.0, 2.0]


def test_a_forked_child_that_returns_does_not_answer(call) -> None:
    assert call("forks") == [1.0, 1.0]
    assert call("forks", completions=["x"]) == [1.0]


def test_a_module_that_forks_is_loaded_once(pool: RewardPool, tmp_path: Path) -> None:
    text = "import os\nforked = os.fork()\nif forked: os.waitpid(forked, 0)\n"
    text += "def parent(completions, **columns): return [float(forked != 0)] * len(completions)\n"
    (tmp_path / "forking.py").write_text(text)
    rewards = pool.open([RewardTable(function=f"{tmp_path}/forking.py:parent")], "stages.0.rewards")
    assert [rewards(examples(1), ["x"], [True]) for _ in range(2)] == [[1.0], [1.0]]


def test_an_answer_to_an_earlier_call_is_passed_over(call) -> None:
    call("twice", completions=["bad"])
    assert call("twice", completions=["x", "y", "z"]) == [1.0, 1.0, 1.0]


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


def test_columns_that_cannot_be_read_fail_their_samples(pool: RewardPool, tmp_path: Path) -> None:
    rewards = pool.open([RewardTable(function=f"{tmp_path}/functions.py:arrays")], "stages.0.rewards")
    rows = [Example(0, "p", ("e",), {"topic": "t"}), Example(1, "p", ("e",), {"topic": Unreadable()})]
    assert same(rewards(rows, ["x", "y"], [True, True]), [0.0, None])
    assert "cannot be read: ValueError" in rewards.last_failure


def test_what_trl_passes_besides(call) -> None:
    assert call("logs", step=7, steps=9) == [7.0, 7.0]
    assert call.last.take_logged() == [("words", 3.0), ("lone ?", 1.0)]
    assert call.last.take_logged() == []


def test_chats_arrive_as_messages() -> None:
    messages = ({"role": "user", "content": "hi"},)
    chat = Example(0, "<user>hi", (), {"a": 1}, messages=messages)
    text = Example(1, "<s>hi", (), {"b": 2}, row_prompt="hi")
    keywords = call_keywords([chat, text], ["x", "y"], [True, False], [[1], (2, 3)])
    assert keywords == {
        "prompts": [[{"role": "user", "content": "hi"}], "hi"],
        "completions": [[{"role": "assistant", "content": "x"}], "y"],
        "completion_ids": [[1], [2, 3]],
        "a": [1, None],
        "b": [None, 2],
        "finished": [True, False],
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "expected a list of 2 numbers from .*:short, one per completion, got 1"),
        ("single", "expected a list of 2 numbers from .*:single, got float"),
        ("unsized", "expected a list of 2 numbers from .*:unsized, got ndarray of 0 dimensions"),
        ("unordered", "expected a list of 2 numbers from .*:unordered, got set"),
        ("words", "expected a list of 2 numbers from .*:words, got str"),
    ],
)
def test_wrong_lengths_are_named(call, name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"stages\.0\.rewards\.0\.function: " + message):
        call(name)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("wants", ["topic"], "expected .*:wants to ask for no more than prompts, .*topic, .*, got solution"),
        ("positional", ["topic"], "with positional parameters"),
        ("half", ["finished"], "expected columns of other names .*, got finished"),
        ("number", ["topic"], "expected a callable, got int"),
        ("nowhere", ["topic"], "expected something importable"),
    ],
)
def test_functions_that_cannot_be_called_are_refused(pool, tmp_path: Path, name, columns, message) -> None:
    with pytest.raises(UserError, match=message):
        pool.open([RewardTable(function=f"{tmp_path}/functions.py:{name}")], "stages.0.rewards", columns)


def test_functions_of_the_package_run_here_under_the_same_rules() -> None:
    def judge(completions, **columns):
        if "bad" in completions:
            raise KeyError("bad")
        return [float(os.getpid())] * len(completions)

    rewards = Rewards(((LocalReward("aapa.x:judge", judge, "f"), 1.0),))
    pid = float(os.getpid())
    assert same(rewards(examples(3), ["x", "bad", "y"], [True] * 3), [pid, None, pid])
    assert "KeyError: 'bad'" in rewards.last_failure


def test_a_window_of_failures_ends_the_run() -> None:
    window = FailureWindow(100, 0.05)
    for _ in range(50):
        window.add(1, 20)  # 5 of every 100
    with pytest.raises(TrainingFault, match="at most 5% of 100 samples .* got 6; the last: f: boom"):
        window.add(2, 20, "f: boom")
    fresh = FailureWindow(100, 0.05)
    fresh.add(5, 8)
    with pytest.raises(TrainingFault, match="got 6"):
        fresh.add(1, 8)


def test_a_stage_without_any_reward_ends_the_run() -> None:
    window = FailureWindow(200, 0.05)
    window.end()
    window.add(4, 4, "f: boom")
    with pytest.raises(TrainingFault, match="expected samples with a reward, got none of 4; the last: f: boom"):
        window.end()
    window.add(3, 4)
    window.end()
