"""Progress of training processes that run side by side, read from their metric logs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from aapa.engine.progress import FIGURES, format_figure

_PLAIN_SECONDS = 20.0
_TAIL_BYTES = 16_384


class DemoProgress:
    """One bar per running process on a terminal; elsewhere a plain line for each now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bars: Progress | None = None
        self._tasks: dict[str, tuple[Path, TaskID | None, float]] = {}
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self._console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, label: str, directory: Path) -> None:
        """Show a process that trains into a directory."""
        task = None if self._bars is None else self._bars.add_task(label, total=None, figures="starting")
        self._tasks[label] = (directory, task, time.monotonic())
        self._say(f"{label}: started")

    def end(self, label: str) -> None:
        """The process has ended."""
        _, task, began = self._tasks.pop(label)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)
            self._console.print(f"{label}: done in {time.monotonic() - began:.0f} s", highlight=False)
        self._say(f"{label}: ended after {time.monotonic() - began:.0f} s")

    def refresh(self) -> None:
        """Show where the processes are."""
        plain = self._bars is None and time.monotonic() - self._shown > _PLAIN_SECONDS
        for label, (directory, task, began) in self._tasks.items():
            row = _last_row(directory / "metrics.jsonl")
            if row is None:
                continue
            where = f"{row['stage']} step {row['step']}"
            text = "  ".join(
                [where, *(f"{name} {format_figure(row[key])}" for key, name in FIGURES.items() if key in row)]
            )
            if self._bars is not None and task is not None:
                self._bars.update(task, figures=text)
            elif plain:
                self._say(f"{label}: {text}  ({time.monotonic() - began:.0f} s)")
        if plain:
            self._shown = time.monotonic()

    def _say(self, line: str) -> None:
        if self._bars is None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last whole training row of a log that another process is writing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if line.startswith(b"{") and b'"train"' in line:
            return json.loads(line)
    return None
