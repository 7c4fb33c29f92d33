"""Assumptions that measurements replace: rows of `benchmarks/results/*.jsonl` from the same kind of GPU."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aapa.engine.errors import UserError
from aapa.engine.plan.gpus import Gpu
from aapa.engine.plan.timing import Assumptions

# The operation whose rows hold the useful TFLOP/s of whole updates.
UPDATE = "policy_update"


def calibrated(gpu: Gpu, folder: Path, assumed: Assumptions | None = None) -> Assumptions:
    """The assumptions with what was measured on this kind of GPU in their place.

    Two things are looked for in files of JSON lines below `folder`, in rows of bfloat16 whose "device" names the GPU:

    - the matrix product that a benchmark of the head is compared with: `tflop_s / limit_ratio`, the median;
    - rows of op "policy_update" on one GPU: `tflop_s`, useful FLOP/s of whole updates, the median.

    Raises:
        UserError: a file that holds no JSON lines.
    """
    assumed = assumed or Assumptions()
    products, updates = [], []
    for row in _rows(folder):
        if gpu.name.split("-")[0] not in str(row.get("device")) or row.get("dtype") != "bfloat16":
            continue
        speed, ratio = row.get("tflop_s"), row.get("limit_ratio")
        if not isinstance(speed, int | float):
            continue
        if row.get("op") == UPDATE:
            updates.append(speed * 1e12 / gpu.flops)
        elif isinstance(ratio, int | float) and ratio > 0 and row.get("op") == "linear_policy_loss":
            products.append(speed / ratio * 1e12 / gpu.flops)
    measured = []
    if products:
        share = min(1.0, statistics.median(products))
        assumed = replace(assumed, matmul=share)
        measured.append(f"matrix products at {share:.0%} of the peak ({len(products)} rows)")
    if updates:
        share = min(1.0, statistics.median(updates))
        assumed = replace(assumed, update=share)
        measured.append(f"updates on one GPU at {share:.0%} MFU ({len(updates)} rows)")
    return replace(assumed, measured=tuple(measured))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.rglob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"--results: expected JSON lines, got {file}:{number}: {error}") from None
            if isinstance(row, dict):
                yield row
