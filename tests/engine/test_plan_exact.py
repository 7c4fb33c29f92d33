"""Bytes that a plan calls exact are those of the real policy, in real processes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import models
from plan_worker import CASES

from aapa.engine.plan.layout import Layout
from aapa.engine.plan.shapes import stage_parameters, state_bytes
from aapa.engine.plan.work import WIDTHS

pytestmark = pytest.mark.multiprocess
LAYOUTS = {"data": Layout(data=2, distributed_optimizer=True, overlap=True)}
# The vocabulary of 67 is padded at TP2; a tied embedding has a copy, and a bucket of its own, at PP2.
MORE = {
    "tensor": Layout(tensor=2, sequence=True),
    "pipeline": Layout(pipeline=2),
    "one": Layout(),
    "data, each with all states": Layout(data=2),
    "interleaved": Layout(pipeline=2, virtual=2),
    "context": Layout(context=2, distributed_optimizer=True),
    "tensor and pipeline": Layout(tensor=2, pipeline=2, sequence=True),
    "pipeline and data": Layout(pipeline=2, data=2, distributed_optimizer=True, overlap=True),
    "interleaved and data": Layout(pipeline=2, virtual=2, data=2, distributed_optimizer=True),
    "tensor, context": Layout(tensor=2, context=2, distributed_optimizer=True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_of_every_rank(name, launch, tmp_path):
    compare(LAYOUTS[name], launch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_bytes_of_every_rank_of_more_layouts(name, launch, tmp_path):
    compare(MORE[name], launch, tmp_path)


def compare(layout: Layout, launch, folder: Path) -> None:
    launch("plan_worker.py", layout.gpus, json.dumps(asdict(layout)), folder)
    for rank in range(layout.gpus):
        real = json.loads((folder / f"rank-{rank}.json").read_text())
        for kind, ranks in real["groups"].items():
            assert ranks in layout.groups()[kind], (rank, kind)
        for case, found in real["cases"].items():
            family, changes, dtype = CASES[case]
            hf = models.config(family, **changes)
            chunks = stage_parameters(hf, layout, real["stage"])
            shapes = [{parameter.name: list(parameter.shape) for parameter in chunk} for chunk in chunks]
            assert [list(chunk.items()) for chunk in shapes] == [list(chunk.items()) for chunk in found["shapes"]]
            planned = state_bytes(hf, layout, real["stage"], real["data_rank"], WIDTHS[dtype])
            expected = (found["weights"], found["gradients"], found["optimizer"])
            assert (planned.weights, planned.gradients, planned.optimizer) == expected, (rank, case)
