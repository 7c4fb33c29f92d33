"""Benchmarks of one operation: its table, JSON lines, and ratios to the floor, to peers and to another revision.

    python benchmarks/run.py --op linear_policy_loss [--peers] [--base REV] [--rounds N] [--output FILE]

`--base REV` checks that revision out beside this one, builds the C++ operations of both, and times the two in turn, in
processes of their own; the ratio is of the medians over the turns, this revision over the other. Where "auto" does not
take the same backend in both there is nothing to compare, and that is said instead.
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
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import Case, Options, add_arguments, parse_options, run_cases  # noqa: E402

TURNS = 3
# Asked of each tree in a process of its own.
CHOICE = """
import sys, torch
from aapa.kernels.dispatch import resolve
print(resolve(sys.argv[1], "auto", torch.device(sys.argv[2])).__name__.split(".")[-2])
"""


class NotComparable(Exception):
    """The other revision cannot be timed against this one; the message says why."""


@dataclass(frozen=True)
class Timed:
    """A candidate's median time, and which backend ran of each operation; None where the revision does not say."""

    ms: float
    resolved: dict[str, str] | None


# A benchmark's candidates by what identifies them: operation, shape, dtype, backend, mode.
Turn = dict[tuple[str, ...], Timed]


def operations() -> list[str]:
    return sorted(file.stem.removeprefix("bench_") for file in (ROOT / "benchmarks/kernels").glob("bench_*.py"))


def cases(op: str, options: Options, peers: bool) -> list[Case]:
    """The operation's cases; without peers only what is ours."""
    made: list[Case] = importlib.import_module(f"benchmarks.kernels.bench_{op}").cases(options)
    if peers:
        return made
    return [replace(case, candidates=[c for c in case.candidates if not c.peer]) for case in made]


def commit_of(revision: str) -> str | None:
    """Full name of a revision's commit; None where there is no such revision."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A worktree of the commit, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def build(tree: Path) -> str:
    """Builds the C++ operations of a tree in place; what the compiler said. Setup goes on without them if it fails."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


def built(tree: Path) -> bool:
    return any((tree / "kernels").glob("_C*.so"))


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree)}


def choice(tree: Path, op: str, device: str) -> str:
    """The backend that "auto" takes in a tree."""
    command = [sys.executable, "-c", CHOICE, op, device]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotComparable(f"{op} cannot be resolved in {tree}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()[-1]


def prepare(base: Path, op: str, revision: str, device: str) -> None:
    """Builds both trees.

    Raises:
        NotComparable: only one of them has the C++ operations, or "auto" takes another backend in each.
    """
    if not (base / f"benchmarks/kernels/bench_{op}.py").is_file():
        raise NotComparable(f"{revision} has no benchmark of {op}")
    names = {ROOT: "this revision", base: revision}
    said = {tree: build(tree) for tree in names}
    lacking = [tree for tree in names if not built(tree)]
    if len(lacking) == 1:
        raise NotComparable(f"the C++ operations of {names[lacking[0]]} do not build:\n{said[lacking[0]][-2000:]}")
    chosen = {names[tree]: choice(tree, op, device) for tree in names}
    if len(set(chosen.values())) > 1:
        raise NotComparable(f"{op} runs " + ", and ".join(f"{what} in {where}" for where, what in chosen.items()))


def times(tree: Path, op: str, arguments: Sequence[str]) -> Turn:
    """Every candidate of the operation in a tree."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", f"benchmarks.kernels.bench_{op}", *arguments, "--output", str(output)]
        done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotComparable(f"the benchmark of {op} fails in {tree}:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return {
        (r["op"], json.dumps(r["shape"]), r["dtype"], r["backend"], r["mode"]): Timed(r["p50_ms"], r.get("resolved"))
        for r in rows
    }


def compare(here: Sequence[Turn], there: Sequence[Turn], revision: str) -> bool:
    """Print this revision's time over the other's, for every candidate that both have; whether there was any ratio.

    Args:
        here, there: times by candidate, of each turn.
    """
    any_ratio = False
    for key in sorted(here[0].keys() & there[0].keys()):
        what = " ".join(key)
        ours, theirs = here[0][key].resolved, there[0][key].resolved
        if theirs is not None and ours != theirs:
            print(f"{what}: no ratio, this revision ran {ours}, {revision} {theirs}")
            continue
        ms, base_ms = (statistics.median(turn[key].ms for turn in turns) for turns in (here, there))
        print(f"{what}: {ms:.3f} ms, {revision} {base_ms:.3f} ms, ratio {ms / base_ms:.3f}")
        any_ratio = True
    return any_ratio


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", required=True, choices=operations())
    parser.add_argument("--peers", action="store_true", help="peers take turns with ours")
    parser.add_argument("--base", metavar="REV", help="another revision to compare with")
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    options = parse_options(parsed)
    if parsed.base is None:
        run_cases(cases(parsed.op, options, parsed.peers), options, parsed.output)
        return 0
    commit = commit_of(parsed.base)
    if commit is None:
        parser.error(f"argument --base: expected a revision of this repository, got {parsed.base!r}")
    passed = ["--device", str(options.device), "--rounds", str(options.rounds), *(["--smoke"] if options.smoke else [])]
    try:
        with checkout(commit) as base:
            prepare(base, parsed.op, parsed.base, str(options.device))
            run_cases(cases(parsed.op, options, parsed.peers), options, parsed.output)
            turns = [(times(ROOT, parsed.op, passed), times(base, parsed.op, passed)) for _ in range(TURNS)]
    except NotComparable as error:
        print(f"run.py: no comparison with {parsed.base}: {error}", file=sys.stderr)
        return 2
    here, there = zip(*turns, strict=True)
    if not compare(here, there, parsed.base):
        print(f"run.py: no candidate of {parsed.op} compares with one of {parsed.base}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
