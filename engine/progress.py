"""What a person sees while a stage runs: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

# The figures one looks at, in reading order, and what they are called here.
FIGURES: Mapping[str, str] = {
    "loss/total": "loss",
    "reward/mean": "reward",
    "eval/pass_rate": "pass",
    "anchor/mean": "anchor",
    "policy/entropy": "entropy",
    "response/length": "length",
    "optim/grad_norm": "grad norm",
}

# Steps the speed is measured over: enough to be steady, few enough to follow a change.
_RATE_WINDOW = 30
_REDRAW_SECONDS = 0.1


class StageProgress:
    """Progress of one stage as a context manager: steps, speed, time left and the latest figures.

    On a terminal a bar, elsewhere one plain line every few seconds, on ranks above 0 nothing.

    Args:
        stage: name of the stage.
        total_steps: steps the stage has in all.
        figures: names of the metrics to show, where they exist.
        start_step: steps done before this process began (a resumed run).
        rank: rank of this process; by default torchrun's RANK.
        console: where to write; by default standard output.
        interval: seconds between plain lines.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        stage: str,
        total_steps: int,
        figures: Sequence[str] = tuple(FIGURES),
        *,
        start_step: int = 0,
        rank: int | None = None,
        console: Console | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self.total_steps = total_steps
        self.figures = tuple(figures)
        self._silent = (int(os.environ.get("RANK", "0")) if rank is None else rank) > 0
        self._console = console or Console()
        self._interval = interval
        self._clock = clock
        self._latest: dict[str, Any] = {}
        self._step = start_step
        self._start_step = start_step
        self._began = clock()
        self._times: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._shown = -math.inf
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._times.append((self._began, self._step))
        if not self._silent and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = _Bar(self._console)
            self._bar.add_task(self.stage, total=self.total_steps, completed=self._step, pace="")
            self._bar.start()
        return self

    def update(self, step: int, figures: Mapping[str, Any]) -> None:
        """Say that `step` steps of the stage are done; a figure that is not given keeps its last value."""
        if self._silent:
            return
        now = self._clock()
        self._step = step
        # An evaluation reports a step for the second time: it is no progress.
        if step > self._times[-1][1]:
            self._times.append((now, step))
        self._latest |= {name: figures[name] for name in self.figures if name in figures}
        due = now - self._shown >= (self._interval if self._bar is None else _REDRAW_SECONDS)
        if not due and step < self.total_steps:
            return
        self._shown = now
        if self._bar is None:
            self._print(f"step {step}/{self.total_steps}", self._pace(), self._figures_text())
        else:
            self._redraw(self._bar)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._silent:
            return
        took = format_duration(self._clock() - self._began)
        if self._bar is not None:
            self._redraw(self._bar, f"{self._step - self._start_step} steps in {took}")
            self._bar.stop()
        else:
            end = "done" if error is None else f"stopped at step {self._step}"
            self._print(f"{end}, {self._step - self._start_step} steps in {took}")

    def _redraw(self, bar: _Bar, pace: str | None = None) -> None:
        bar.footer = self._figures_text()
        bar.update(bar.task_ids[0], completed=self._step, pace=self._pace() if pace is None else pace)
        bar.refresh()

    def _print(self, *parts: str) -> None:
        # Past rich, which would wrap a long line at the width it assumes for a file.
        print("  ".join([self.stage, *filter(None, parts)]), file=self._console.file, flush=True)

    def _pace(self) -> str:
        (first, start), (last, end) = self._times[0], self._times[-1]
        if end <= start or last <= first:
            return ""
        rate = (end - start) / (last - first)
        speed = f"{rate:.3g} step/s" if rate >= 1 else f"{1 / rate:.3g} s/step"
        return f"{speed}  eta {format_duration((self.total_steps - self._step) / rate)}"

    def _figures_text(self) -> str:
        shown = [name for name in self.figures if name in self._latest]
        return "  ".join(f"{FIGURES.get(name, name)} {format_figure(self._latest[name])}" for name in shown)


class _Bar(Progress):
    """A bar with a line of figures below; drawn only on demand.

    No refresh thread: a process forked while such a thread holds the console's lock would wait for ever.
    """

    def __init__(self, console: Console) -> None:
        self.footer = ""
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[pace]}", style="cyan"),
            console=console,
            auto_refresh=False,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.footer:
            yield Text(self.footer, style="dim")


def format_figure(value: Any) -> str:
    """A figure in three significant digits; what is not a number as it is."""
    if value is None:
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
