"""Progress on a terminal, in a log, and on the ranks that keep quiet."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from aapa.engine.progress import StageProgress, format_duration, format_figure


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(**options: object) -> tuple[StageProgress, Clock, io.StringIO]:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, width=40)
    return StageProgress("sft", 10, console=console, clock=clock, **options), clock, out  # type: ignore[arg-type]


def test_plain_lines_come_every_few_seconds() -> None:
    progress, clock, out = plain()
    with progress:
        for step in range(1, 11):
            clock.now += 2.0
            progress.update(step, {"loss/total": 1 / step, "reward/mean": 0.5, "unknown": 1.0})
    lines = out.getvalue().splitlines()
    # Steps end at 2, 4, 6 … seconds: the first, then whenever 5 s have passed, then the last.
    assert [line.split("  ")[1] for line in lines[:-1]] == [
        "step 1/10",
        "step 4/10",
        "step 7/10",
        "step 10/10",
    ]
    assert lines[0] == "sft  step 1/10  2 s/step  eta 0:18  loss 1  reward 0.5"
    assert lines[1].endswith("loss 0.25  reward 0.5")
    assert lines[-1] == "sft  done, 10 steps in 0:20"
    assert "\x1b" not in out.getvalue()


def test_a_figure_keeps_its_last_value() -> None:
    progress, clock, out = plain(interval=0.0)
    with progress:
        progress.update(1, {"eval/pass_rate": 0.34})
        clock.now += 1
        progress.update(2, {"loss/total": math.nan})
    assert out.getvalue().splitlines()[1].endswith("loss nan  pass 0.34")


def test_resumed_stage_measures_only_its_own_steps() -> None:
    progress, clock, out = plain(start_step=6)
    with progress:
        clock.now += 0.25
        progress.update(7, {})
    lines = out.getvalue().splitlines()
    assert lines == ["sft  step 7/10  4 step/s  eta 0:01", "sft  done, 1 steps in 0:00"]


def test_an_evaluation_is_no_step() -> None:
    progress, clock, out = plain(interval=0.0)
    with progress:
        clock.now += 1.0
        progress.update(1, {})
        clock.now += 99.0
        progress.update(1, {"eval/pass_rate": 1.0})
    assert "1 step/s  eta 0:09  pass 1" in out.getvalue()


def test_a_fault_is_not_called_done() -> None:
    progress, _, out = plain()

    def train() -> None:
        with progress:
            progress.update(1, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train()
    assert "done" not in out.getvalue()
    assert "stopped at step 1" in out.getvalue()


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    explicit, _, said = plain(rank=1)
    monkeypatch.setenv("RANK", "3")
    from_torchrun, _, said_too = plain()
    for progress in (explicit, from_torchrun):
        with progress:
            progress.update(10, {"loss/total": 1.0})
    assert said.getvalue() == said_too.getvalue() == ""


def test_bar_on_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with StageProgress("a-grpo", 4, console=console, clock=clock) as progress:
        for step in range(1, 4):
            clock.now += 0.5
            progress.update(step, {"reward/mean": step / 8, "anchor/mean": -0.1234})
    text = out.getvalue()
    assert "a-grpo" in text
    assert "3/4" in text
    assert "2 step/s  eta 0:00" in text or "2 step/s  eta 0:01" in text
    assert "reward 0.375  anchor -0.123" in text
    assert "3 steps in 0:02" in text


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with StageProgress("sft", 1, console=Console(file=out, force_terminal=True)) as progress:
        progress.update(1, {})
    assert out.getvalue().startswith("sft  step 1/1")


def test_formats() -> None:
    assert [format_figure(x) for x in (0.00012, 0.5, 41.23, 1234.5, math.nan, None, "ok")] == [
        "0.00012",
        "0.5",
        "41.2",
        "1234",
        "nan",
        "–",
        "ok",
    ]
    assert [format_duration(x) for x in (0.4, 59.6, 61, 3600, 36_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]
