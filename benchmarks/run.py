"""Benchmarks of one operation: its table, JSON lines, and ratios to the floor, to peers and to another revision.

    python benchmarks/run.py --op linear_policy_loss [--peers] [--base REV] [--rounds N] [--output FILE]

`--base REV` checks that revision out beside this one, builds it, and times the two in turn, in processes of their own;
the ratio is of the medians over the turns, this revision over the other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import Case, Options, add_arguments, parse_options, run_cases  # noqa: E402

TURNS = 3


def operations() -> list[str]:
    return sorted(file.stem.removeprefix("bench_") for file in (ROOT / "benchmarks/kernels").glob("bench_*.py"))


def cases(op: str, options: Options, peers: bool) -> list[Case]:
    """The operation's cases; without peers only what is ours."""
    made: list[Case] = importlib.import_module(f"benchmarks.kernels.bench_{op}").cases(options)
    if peers:
        return made
    return [replace(case, candidates=[c for c in case.candidates if not c.peer]) for case in made]


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A worktree of the revision with its C++ operations built, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), revision], cwd=ROOT, check=True)
        try:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=tree, check=True, stdout=subprocess.DEVNULL)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def times(tree: Path, op: str, arguments: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Median milliseconds of every candidate of the operation in a checkout, by what identifies it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", f"benchmarks.kernels.bench_{op}", *arguments, "--output", str(output)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = [json.loads(line) for line in output.read_text().splitlines()]
    return {(r["op"], json.dumps(r["shape"]), r["dtype"], r["backend"], r["mode"]): r["p50_ms"] for r in rows}


def compare(op: str, revision: str, arguments: Sequence[str]) -> None:
    """Print this revision's time over the other's, for every candidate that both have."""
    found: dict[Path, list[dict[tuple[str, ...], float]]] = {}
    with checkout(revision) as base:
        for _ in range(TURNS):
            for tree in (ROOT, base):
                found.setdefault(tree, []).append(times(tree, op, arguments))
        here, there = found[ROOT], found[base]
    common = here[0].keys() & there[0].keys()
    for key in sorted(common):
        ms, base_ms = (statistics.median(turn[key] for turn in turns) for turns in (here, there))
        print(f"{' '.join(key)}: {ms:.3f} ms, {revision} {base_ms:.3f} ms, ratio {ms / base_ms:.3f}")
    if not common:
        print(f"{revision} has no candidate of {op} in common with this revision")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", required=True, choices=operations())
    parser.add_argument("--peers", action="store_true", help="peers take turns with ours")
    parser.add_argument("--base", metavar="REV", help="another revision to compare with")
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    options = parse_options(parsed)
    run_cases(cases(parsed.op, options, parsed.peers), options, parsed.output)
    if parsed.base is not None:
        passed = ["--device", str(options.device), "--rounds", str(options.rounds)]
        compare(parsed.op, parsed.base, [*passed, *(["--smoke"] if options.smoke else [])])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
