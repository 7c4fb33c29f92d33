"""Bytes that a plan calls exact are those of the real policy, in real processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import models
from plan_worker import CASES

from aapa.engine.plan.layout import Layout
from aapa.engine.plan.shapes import stage_parameters, state_bytes

pytestmark = pytest.mark.multiprocess
LAYOUTS = {"tensor": Layout(tensor=2), "pipeline": Layout(pipeline=2), "data": Layout(data=2)}


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_of_every_rank(name, launch, tmp_path):
    layout = LAYOUTS[name]
    launch("plan_worker.py", layout.gpus, layout.tensor, layout.pipeline, tmp_path)
    files = sorted(tmp_path.glob("rank-*.json"))
    assert len(files) == layout.gpus
    for file in files:
        for case, real in json.loads(file.read_text()).items():
            family, changes = CASES[case]
            hf = models.config(family, **changes)
            (parameters,) = stage_parameters(hf, layout, real["stage"])
            assert [(p.name, list(p.shape)) for p in parameters] == list(real["shapes"].items()), (file.name, case)
            planned = state_bytes(hf, layout, real["stage"], real["data_rank"], width=4)
            expected = (real["weights"], real["gradients"], real["optimizer"])
            assert (planned.weights, planned.gradients, planned.optimizer) == expected, (file.name, case)
