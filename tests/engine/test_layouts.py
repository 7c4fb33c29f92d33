"""One step at TP = 2, PP = 2 and DP = 2 equals one process, in real processes over gloo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny

pytestmark = pytest.mark.multiprocess
LAYOUTS = {"tensor": (2, 1), "pipeline": (1, 2), "data": (1, 1)}


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch("layout_worker.py", 1, 1, 1, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_equals_one_process(layout, alone, launch, tmp_path):
    launch("layout_worker.py", 2, *LAYOUTS[layout], tmp_path)
    assert {file.stem for file in (alone / "untied").glob("*.safetensors")} >= set(tiny.objectives())
    for tie in ("tied", "untied"):
        compare(layout, tmp_path / tie, alone / tie)


def compare(layout: str, folder: Path, reference: Path) -> None:
    facts, expected = (json.loads((place / "facts.json").read_text()) for place in (folder, reference))
    assert expected["sums"]["sum/rl_clipped_high"] > 0, "the batch must exercise clipping"
    for name, value in expected["sums"].items():
        assert facts["sums"][name] == pytest.approx(value, rel=1e-10, abs=1e-10), name
    assert facts["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    if layout != "data":  # each replica has its own half of the sequences
        assert facts["logprob"] == pytest.approx(expected["logprob"], rel=1e-10)
    for file, tolerance in (("gradients", 1e-10), ("weights", 1e-6), ("moments", 1e-7)):
        got, want = (load_file(place / f"{file}.safetensors") for place in (folder, reference))
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=0, atol=tolerance, msg=f"{file} {name}")
    for file in sorted(reference.glob("*.safetensors")):
        if file.stem in ("gradients", "weights", "moments"):
            continue
        got, want = (load_file(place / file.name) for place in (folder, reference))
        assert got.keys() == want.keys(), file.stem
        assert any(value.any() for name, value in want.items() if name.startswith("model."))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-10, msg=f"{file.stem} {name}")
