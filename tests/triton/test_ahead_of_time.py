"""Every kernel, compiled for GPUs that are not here; and that the report sees what it is to see."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kernels.ahead_of_time import TARGETS, launches, report
from benchmarks.kernels.aot_report import reports

KERNELS = {
    "_policy_tokens",
    "_sequence_means",
    "_logit_statistics",
    "_logit_gradient",
    "_scored_rows",
    "_piece_sums",
    "_long_means",
    "_sentence_scores",
    "_anchor_sums",
    "_anchor_tokens",
}


@triton.jit
def product(left, right, out, SIZE: tl.constexpr, DEPTH: tl.constexpr, FULL: tl.constexpr):
    lane, depth = tl.arange(0, SIZE), tl.arange(0, DEPTH)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, 8 * DEPTH, DEPTH):
        a = tl.load(left + lane[:, None] * 8 * DEPTH + k + depth[None, :])
        b = tl.load(right + (k + depth)[:, None] * SIZE + lane[None, :])
        if FULL:
            total += tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
        else:
            total = tl.dot(a, b, total)
    tl.store(out + lane[:, None] * SIZE + lane[None, :], total)


def launch_of(size: int, depth: int, full: bool = False, **options):
    half = torch.zeros(16, dtype=torch.bfloat16)
    options = {"enable_fp_fusion": True, **options}
    (launch,) = launches(
        lambda: product[(1,)](half, half, torch.zeros(16), SIZE=size, DEPTH=depth, FULL=full, **options)
    )
    return launch


def test_a_product_without_fault() -> None:
    found = report(launch_of(64, 32, num_warps=4, num_stages=2), TARGETS["sm90"])
    assert found.matrix > 0
    assert found.faults() == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 128, "depth": 16, "num_warps": 1}, "bytes spilled"),
        ({"size": 128, "depth": 128, "num_warps": 8, "num_stages": 5}, "bytes of shared memory, more than 232448"),
        ({"size": 16, "depth": 16, "full": True, "num_warps": 4}, "no HGMMA"),
    ],
)
def test_faults_are_reported(options, complaint) -> None:
    faults = report(launch_of(**options), TARGETS["sm90"]).faults()
    assert any(complaint in fault for fault in faults), faults


def test_every_kernel_of_the_package_is_in_the_report() -> None:
    folder = Path(__file__).parents[2] / "kernels" / "triton"
    text = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    assert {name for name in KERNELS if f"{name}[(" in text} == KERNELS
    assert text.count("[(") == len(KERNELS), "a launch that the report does not know"


def check(target: str, only=lambda launch: True) -> None:
    found = list(reports(TARGETS[target], only))
    assert {one.kernel for one in found} == KERNELS
    assert [fault for one in found for fault in one.faults()] == []
    assert any(one.expects_matrix for one in found)


def test_one_variant_of_every_kernel_on_a_hopper() -> None:
    seen: set[str] = set()
    # A set's `add` gives None: true for the first launch of a kernel.
    check("sm90", lambda launch: launch.name not in seen and not seen.add(launch.name))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_spills_or_takes_too_much_or_misses_the_matrix_units(target: str) -> None:
    check(target)
