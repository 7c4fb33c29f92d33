"""Interleaved timing of several implementations of one operation, on the CPU or on a CUDA device.

All candidates of a case, and the hardware's own limit (a copy of as many bytes, a matrix product), take turns
in one process, so that clocks, caches and neighbours treat them alike. Ratios hold within a run only. Run a
benchmark from the repository's root: `python -m benchmarks.kernels.bench_sentence_scores --smoke`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from aapa.kernels import dispatch
from benchmarks.arguments import a_count, a_device, a_file

# A sample shorter than this is repeated inside the sample: the host's clock and jitter would swamp it.
SAMPLE_SECONDS = 2e-4
WARM_UP = 3


@dataclass(frozen=True)
class Candidate:
    """One implementation.

    Attributes:
        backend: its name in the table; ours are those of `aapa.kernels`, peers are named after their project
            or method.
        run: does the work once on inputs it holds.
        mode: "forward", "forward+backward" or the operation's own mode.
        peer: whether it is another project's, or what one would write without ours.
    """

    backend: str
    run: Callable[[], Any]
    mode: str = "forward"
    peer: bool = False


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        op: name of the operation.
        shape: sizes by name.
        dtype: of the large inputs.
        candidates: ours first; ratios to peers are taken against each other one.
        moved_bytes: bytes that must be read and written, for GB/s and the copy as a limit; None where it says
            nothing.
        flops: floating-point operations, for TFLOP/s and the matrix product as a limit.
        floor: what no implementation of this way can do without, such as its bare matrix products; measured among the
            candidates.
    """

    op: str
    shape: dict[str, int]
    dtype: str
    candidates: Sequence[Candidate]
    moved_bytes: int | None = None
    flops: int | None = None
    floor: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    device: torch.device
    smoke: bool
    rounds: int


@dataclass
class Row:
    """Result of one candidate, one JSON line.

    Attributes:
        p20_ms, p50_ms, p80_ms: of the samples.
        peak_mb: allocated on the device beyond what lay there before; None on the CPU, which does not tell.
        limit_ratio: time of the limit over the time of the candidate: 1 is as fast as the hardware allows.
        floor_ratio: time of the candidate over that of the case's floor; None where it has none.
        floor_bytes_ratio: the same over the floor and a copy of `moved_bytes`, one after the other.
        peers: time of each other candidate over the time of this one: above 1 this one is faster.
        resolved: the backend that ran of each of our operations; what "auto" took is among them.
    """

    op: str
    backend: str
    mode: str
    shape: dict[str, int]
    dtype: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    peak_mb: float | None
    gb_s: float | None
    tflop_s: float | None
    limit_ratio: float | None
    floor_ratio: float | None = None
    floor_bytes_ratio: float | None = None
    peers: dict[str, float] = field(default_factory=dict)
    resolved: dict[str, str] = field(default_factory=dict)
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None


class Timer:
    """Seconds of one call: CUDA events behind a flushed L2 cache, or the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flush: Tensor | None = None
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], Any], repeats: int = 1) -> float:
        if self.flush is None:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats
        total = 0.0
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            begin.record()
            run()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end) / 1e3
        return total / repeats

    def peak_bytes(self, run: Callable[[], Any]) -> int | None:
        """Bytes allocated while it runs beyond those before; None on the CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def limits(case: Case, device: torch.device) -> dict[str, Candidate]:
    """What the hardware does best, by kind: a copy of as many bytes, a product in the same dtype."""
    found = {}
    if case.moved_bytes is not None:
        source = torch.zeros(max(1, case.moved_bytes // 2), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        found["copy"] = Candidate("copy", lambda: target.copy_(source))
    if case.floor is not None:
        found["floor"] = Candidate("floor", case.floor)
    if case.flops is not None:
        size = matrix_size(device)
        dtype = getattr(torch, case.dtype)
        # Not zeros: a GPU multiplies those faster.
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found["matmul"] = Candidate("matmul", lambda: left @ right)
    return found


def matrix_size(device: torch.device) -> int:
    return 8192 if device.type == "cuda" else 512


def measure(case: Case, options: Options) -> list[Row]:
    """Times every candidate of a case, round by round in a new random order."""
    timer = Timer(options.device)
    bounds = limits(case, options.device)
    everything = {**{f"limit {kind}": c for kind, c in bounds.items()}}
    everything.update({f"{c.backend} {c.mode}": c for c in case.candidates})
    assert len(everything) == len(bounds) + len(case.candidates), "candidates need different names or modes"
    peaks = {name: timer.peak_bytes(c.run) for name, c in everything.items()}
    repeats = {}
    resolved: dict[str, dict[str, str]] = {name: {} for name in everything}
    for name, candidate in everything.items():
        with watched(resolved[name]):
            seconds = timer(candidate.run)
        for _ in range(0 if options.smoke else WARM_UP - 1):
            seconds = min(seconds, timer(candidate.run))
        repeats[name] = max(1, round(SAMPLE_SECONDS / seconds)) if not options.smoke else 1
    samples: dict[str, list[float]] = {name: [] for name in everything}
    order = list(everything)
    for _ in range(options.rounds):
        random.shuffle(order)
        for name in order:
            samples[name].append(timer(everything[name].run, repeats[name]))
    median = {name: statistics.median(times) for name, times in samples.items()}
    limit_seconds = {}
    if "copy" in bounds:
        limit_seconds["copy"] = median["limit copy"]
    if "matmul" in bounds and case.flops is not None:
        limit_seconds["matmul"] = median["limit matmul"] * case.flops / (2 * matrix_size(options.device) ** 3)
    bound = max(limit_seconds.values(), default=None)
    rows = [
        make_row(case, c, samples[f"{c.backend} {c.mode}"], peaks[f"{c.backend} {c.mode}"], bound, median)
        for c in case.candidates
    ]
    for row in rows:
        row.resolved = resolved[f"{row.backend} {row.mode}"]
        if "floor" in bounds:
            row.floor_ratio = row.p50_ms / (1e3 * median["limit floor"])
            if "copy" in bounds:
                row.floor_bytes_ratio = row.p50_ms / (1e3 * (median["limit floor"] + median["limit copy"]))
    return rows


@contextlib.contextmanager
def watched(found: dict[str, str]) -> Iterator[None]:
    """Notes which backend runs of each of our operations."""
    module = dispatch._module

    def noted(op: str, backend: str) -> Any:
        found[op] = backend
        return module(op, backend)

    with mock.patch.object(dispatch, "_module", noted):
        yield


def make_row(
    case: Case,
    candidate: Candidate,
    times: list[float],
    peak: int | None,
    bound: float | None,
    median: dict[str, float],
) -> Row:
    """Figures of one candidate; peers are the case's other candidates of the same mode."""
    middle = statistics.median(times)
    return Row(
        op=case.op,
        backend=candidate.backend,
        mode=candidate.mode,
        shape=case.shape,
        dtype=case.dtype,
        p20_ms=1e3 * percentile(times, 0.2),
        p50_ms=1e3 * middle,
        p80_ms=1e3 * percentile(times, 0.8),
        peak_mb=None if peak is None else peak / 1e6,
        gb_s=None if case.moved_bytes is None else case.moved_bytes / middle / 1e9,
        tflop_s=None if case.flops is None else case.flops / middle / 1e12,
        limit_ratio=None if bound is None else bound / middle,
        peers={
            c.backend: median[f"{c.backend} {c.mode}"] / middle
            for c in case.candidates
            if c.mode == candidate.mode and c is not candidate
        },
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Value below which a share of the values lies, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def print_table(rows: Sequence[Row]) -> None:
    """One line a candidate; the ratio is that of the case's first candidate, "ours" over it."""
    header = (
        "op",
        "shape",
        "dtype",
        "backend",
        "mode",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "peak MB",
        "GB/s",
        "TFLOP/s",
    )
    lines = [(*header, "of limit", "x floor", "x floor + bytes", "peer / ours")]
    ours = rows[0]
    for row in rows:
        figures = (row.peak_mb, row.gb_s, row.tflop_s, row.limit_ratio, row.floor_ratio, row.floor_bytes_ratio)
        shown = tuple("" if x is None else f"{x:.3g}" for x in figures)
        shape = " ".join(f"{name}={size}" for name, size in row.shape.items())
        times = (f"{x:.3f}" for x in (row.p20_ms, row.p50_ms, row.p80_ms))
        ratio = f"{row.p50_ms / ours.p50_ms:.2f}x"
        lines.append((row.op, shape, row.dtype, row.backend, row.mode, *times, *shown, ratio))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return {**found, "threads": str(torch.get_num_threads())}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of the checkout, with "+" where the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=root, capture_output=True, text=True
    )
    return described.stdout.strip() or None


def add_arguments(parser: argparse.ArgumentParser, rounds: int = 50) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=a_device, default=default, help=f"cpu, cuda or cuda:N (default {default})")
    parser.add_argument("--rounds", type=a_count, help=f"samples of each candidate (default {rounds}, with --smoke 2)")
    parser.add_argument("--output", type=a_file, help="file to which JSON lines are appended")
    parser.add_argument("--smoke", action="store_true", help="small shapes and few rounds: does it run?")


def parse_options(parsed: argparse.Namespace, rounds: int = 50) -> Options:
    return Options(parsed.device, parsed.smoke, parsed.rounds or (2 if parsed.smoke else rounds))


def run_cases(cases: Sequence[Case], options: Options, output: Path | None) -> None:
    """Measures cases one after the other, prints their tables, and appends JSON lines to a file if there is one."""
    for case in cases:
        rows = measure(case, options)
        for row in rows:
            row.device, row.versions, row.commit = device_name(options.device), versions(), commit()
        print_table(rows)
        if output is not None:
            with output.open("a") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def main(cases: Callable[[Options], Sequence[Case]], arguments: Sequence[str] | None = None) -> int:
    """Command line of a benchmark file.

    Args:
        cases: makes the cases; small ones with `smoke`.
        arguments: of the command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    options = parse_options(parsed)
    run_cases(cases(options), options, parsed.output)
    return 0
