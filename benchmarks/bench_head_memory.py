"""Memory of one forward and backward pass of the LM head on the CPU, beyond inputs and gradients' accumulator.

    python -m benchmarks.bench_head_memory [--smoke] [--output FILE]

Each candidate runs in a process of its own, for a process's peak (VmHWM of /proc/self/status) only rises. What lies
in memory before is subtracted, and so is dWeight of those that return one, since ours adds to an accumulator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Options, commit, versions
from benchmarks.kernels import bench_linear_policy_loss as bench
from benchmarks.kernels.head_problem import HeadProblem, head_problems

CANDIDATES = ("ours", "ours, lean", "reference", "torch linear_cross_entropy, chunked", "whole logits")
RETURNS_WEIGHT_GRADIENT = CANDIDATES[3:]


def runner(name: str, problem: HeadProblem) -> Callable[[], None]:
    if name.startswith(("ours", "reference")):
        options = {"mode": "lean"} if name.endswith("lean") else {}
        backend = "reference" if name == "reference" else "auto"
        return bench.fused(problem, problem.fields, backend=backend, **options)
    case = bench.sft_case(problem) if name.startswith("torch") else bench.surrogate_case(problem)
    return next(c.run for c in case.candidates if c.backend == name)


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status: expected a line VmHWM, got none")


def measure(name: str, index: int, smoke: bool) -> int:
    """Bytes of one pass at shape `index`, in this process."""
    problem = head_problems(Options(torch.device("cpu"), smoke, 1))[index]
    run = runner(name, problem)
    # Libraries set up what they keep at their first product.
    small = head_problems(Options(torch.device("cpu"), True, 1))[0]
    runner(name, small)()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    run()
    used = peak_bytes() - before
    if name in RETURNS_WEIGHT_GRADIENT:
        used -= problem.weight_VD.nbytes
    return used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "INDEX"), help="one candidate, in this process")
    parsed = parser.parse_args()
    if parsed.one is not None:
        print(measure(parsed.one[0], int(parsed.one[1]), parsed.smoke))
        return 0
    for index, problem in enumerate(head_problems(Options(torch.device("cpu"), parsed.smoke, 1))):
        found = {}
        for name in CANDIDATES:
            command = [sys.executable, "-m", "benchmarks.bench_head_memory", "--one", name, str(index)]
            done = subprocess.run(
                [*command, *(["--smoke"] if parsed.smoke else [])], check=True, capture_output=True, text=True
            )
            found[name] = int(done.stdout)
        whole = found["whole logits"]
        for name, used in found.items():
            row = {"op": "linear_policy_loss", "figure": "peak memory", "backend": name, "shape": problem.shape}
            row |= {"peak_mb": used / 1e6, "of_whole_logits": used / max(1, whole)}
            row |= {"versions": versions(), "commit": commit()}
            print(f"{problem.shape} {name}: {used / 1e6:.1f} MB, {used / max(1, whole):.3f} of whole logits'")
            if parsed.output is not None:
                with parsed.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
