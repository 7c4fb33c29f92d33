"""The logs of a run, metrics and samples; on resume they are cut back to what the checkpoint has seen."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from aapa.engine.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
HEADER_KEYS = ("kind", "stage", "step", "global_step")


class JsonLines:
    """A file of JSON objects, one a line, appended to and cut back to a byte offset on resume.

    Args:
        path: the file; made if missing.
        resume_at: bytes to keep, from `position()` of the log that is continued; None begins an empty file.

    Raises:
        UserError: the file is shorter than the offset, or the offset is not the end of a line.
    """

    def __init__(self, path: Path, resume_at: int | None) -> None:
        self.path = path
        keep = resume_at or 0
        if keep:
            _check_offset(path, keep)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is in the file when `append` returns, and a failed write leaves nothing to retry.
        self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        self._end = keep
        self._cut_back()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one object; a write that fails (a full disk) leaves the file as it was."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        rest = memoryview(line.encode("utf-8", errors="replace"))
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._cut_back()
            raise
        self._end += size

    def position(self) -> int:
        """Byte offset after the last line, for the checkpoint; the line is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return self._end

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_back(self) -> None:
        self._file.truncate(self._end)
        self._file.seek(self._end)


class MetricsLog(JsonLines):
    """The figures of a run: `metrics.jsonl` and, under the same names, TensorBoard.

    A value may be a number, a text, None, or a list of counts (a histogram, see `histogram_counts`). Values
    that are not finite become null: the key stays, so that a gap is seen. One rank writes.

    Args:
        run_dir: the run directory; made if missing.
        resume_at: `position()` as stored in the checkpoint; None begins an empty log.
        tensorboard: also write event files.

    Raises:
        UserError: the log on disk does not reach to `resume_at`.
    """

    def __init__(self, run_dir: Path, resume_at: int | None = None, *, tensorboard: bool = True) -> None:
        super().__init__(run_dir / METRICS_FILE, resume_at)
        self._board = _open_board(run_dir) if tensorboard else None

    def write(
        self,
        kind: Literal["train", "eval"],
        stage: str,
        step: int,
        global_step: int,
        figures: Mapping[str, Any],
    ) -> None:
        """Log the figures of one step: `step` counts within the stage, `global_step` over the run.

        Raises:
            ValueError: a figure has the name of a header key, or a value of a type that cannot be logged.
        """
        if clash := [key for key in HEADER_KEYS if key in figures]:
            raise ValueError(f"figures: expected names other than {', '.join(HEADER_KEYS)}, got {clash[0]}")
        plain = {name: _plain(name, value) for name, value in figures.items()}
        header = {"kind": kind, "stage": stage, "step": int(step), "global_step": int(global_step)}
        self.append(header | {name: _without_nan(value) for name, value in plain.items()})
        if self._board is not None:
            _show(self._board, plain, int(global_step))

    def position(self) -> int:
        """Byte offset after the last line, on the disk as are TensorBoard's events up to here."""
        if self._board is not None:
            self._board.flush()
        return super().position()

    def close(self) -> None:
        """Close both logs."""
        if self._board is not None:
            self._board.close()
            self._board = None
        super().close()


@dataclass(frozen=True)
class ScoredSentence:
    """A sentence of a response and its anchor score (METHOD 3.1); None where the anchor does not judge it."""

    text: str
    score: float | None


@dataclass(frozen=True)
class Sample:
    """A response worth keeping: what was asked, what policy and expert wrote, and the verdicts."""

    stage: str
    step: int
    prompt: str
    response: str
    expert: str | None
    reward: float | None
    passed: bool | None
    sentences: tuple[ScoredSentence, ...] = ()


class SampleLog(JsonLines):
    """The samples of a run, `samples.jsonl`; resumed like the metrics."""

    def __init__(self, run_dir: Path, resume_at: int | None = None) -> None:
        super().__init__(run_dir / SAMPLES_FILE, resume_at)

    def write(self, sample: Sample) -> None:
        """Log one sample; a reward or a score that is not finite becomes null."""
        row = asdict(sample)
        row["reward"] = _without_nan(_plain("reward", sample.reward))
        row["passed"] = None if sample.passed is None else bool(sample.passed)
        for sentence in row["sentences"]:
            sentence["score"] = _without_nan(_plain("score", sentence["score"]))
        self.append(row)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` in order, null read as NaN; a torn last line is left out.

    Raises:
        UserError: the file is missing, or a line is not a row; the message names file and line.
    """
    rows = []
    for where, row in _read_json_lines(run_dir / METRICS_FILE):
        _check_keys(where, row, HEADER_KEYS)
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def read_samples(run_dir: Path) -> list[Sample]:
    """Samples of `samples.jsonl` in order; a torn last line is left out.

    Raises:
        UserError: the file is missing, or a line is not a sample; the message names file and line.
    """
    samples = []
    for where, row in _read_json_lines(run_dir / SAMPLES_FILE):
        _check_keys(where, row, tuple(name for name in Sample.__dataclass_fields__ if name != "sentences"))
        try:
            sentences = tuple(ScoredSentence(**sentence) for sentence in row.pop("sentences", None) or ())
            samples.append(Sample(**row, sentences=sentences))
        except TypeError as error:
            raise UserError(f"{where}: expected the fields of a sample, got {error}") from error
    return samples


def histogram_counts(values: Iterable[float], limit: float = 3.0, bins: int = 24) -> list[int]:
    """Counts in equal bins over [−limit, limit]; values beyond count in the outermost, NaN nowhere.

    The log takes this as "anchor/histogram"; where the anchor's clip is not 3, log that as "anchor/clip".
    """
    counts = [0] * bins
    for value in values:
        if not math.isnan(value):
            place = (min(max(value, -limit), limit) + limit) / (2 * limit)
            counts[min(int(place * bins), bins - 1)] += 1
    return counts


def _check_offset(path: Path, offset: int) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size < offset:
        raise UserError(f"{path}: expected at least the {offset} bytes the checkpoint has seen, got {size}")
    with path.open("rb") as file:
        file.seek(offset - 1)
        if file.read(1) != b"\n":
            raise UserError(f"{path}: expected the end of a line at byte {offset}, got the middle of one")


def _plain(name: str, value: Any) -> Any:
    """The value as plain Python: scalars of torch and numpy have `item`, arrays of counts `tolist`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Sequence) and all(isinstance(count, int | float) for count in value):
        return list(value)
    raise ValueError(f"{name}: expected a number, a text or a list of numbers, got {type(value).__name__}")


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(run_dir: Path) -> SummaryWriter:
    # Imported here: it loads torch, which readers of a log do without.
    from torch.utils.tensorboard import SummaryWriter

    rows = read_metrics(run_dir)
    folder = run_dir / TENSORBOARD_FOLDER
    if not rows:
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
    _wait_for_a_later_second(folder)
    last = rows[-1]["global_step"] if rows else 0
    # TensorBoard forgets what earlier event files say of this step and later ones. The last step itself is
    # among them, for the killed process may have logged more of it (an evaluation); what the log kept of it
    # is said again.
    board = SummaryWriter(str(folder), purge_step=last)
    for row in rows:
        if row["global_step"] == last:
            _show(board, {name: value for name, value in row.items() if name not in HEADER_KEYS}, last)
    return board


def _wait_for_a_later_second(folder: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second they were opened in.

    Within one second process ids and counters decide as text, "10" before "9".
    """
    newest = max((int(events.name.split(".")[3]) for events in folder.glob("events.out.tfevents.*")), default=0)
    # A clock that was set back is not waited for.
    while 0 <= newest - int(time.time()) <= 1:
        time.sleep(0.05)


def _show(board: SummaryWriter, figures: Mapping[str, Any], global_step: int) -> None:
    limit = figures.get("anchor/clip", 3.0)
    for name, value in figures.items():
        if isinstance(value, list):
            _show_histogram(board, name, value, limit, global_step)
        elif isinstance(value, int | float):
            board.add_scalar(name, value, global_step)


def _show_histogram(board: SummaryWriter, name: str, counts: Sequence[float], limit: float, global_step: int) -> None:
    total = sum(counts)
    if not total > 0:
        return
    width = 2 * limit / len(counts)
    middles = [(place + 0.5) * width - limit for place in range(len(counts))]
    board.add_histogram_raw(
        name,
        min=-limit,
        max=limit,
        num=total,
        sum=sum(count * middle for count, middle in zip(counts, middles, strict=True)),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limits=[middle + width / 2 for middle in middles],
        bucket_counts=list(counts),
        global_step=global_step,
    )


def _read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line; only the last may be torn, and only if it lacks its line end."""
    if not path.is_file():
        raise UserError(f"{path}: expected a file, got none")
    # Split as bytes: a text may hold other line separators, which str.splitlines would take for line ends.
    *whole, rest = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*whole, rest], start=1):
        torn = number > len(whole)
        if torn and not line:
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise TypeError(f"got {type(row).__name__}")
        except (ValueError, TypeError) as error:
            if torn:
                continue
            raise UserError(f"{path}:{number}: expected a JSON object, {error}") from error
        rows.append((f"{path}:{number}", row))
    return rows


def _check_keys(where: str, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    if missing := [key for key in keys if key not in row]:
        raise UserError(f"{where}: expected the key {missing[0]!r}, got {', '.join(row) or 'no key'}")
