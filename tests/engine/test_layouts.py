"""One step at every layout equals one process, in real processes over gloo."""

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
# Name: processes, tensor, pipeline, further keys. Buckets of 2000 parameters: else a tiny model has only one.
LAYOUTS = {
    "tensor": (2, 2, 1, "sequence=true"),
    "pipeline": (2, 1, 2),
    "data": (2, 1, 1, "distributed_optimizer=true", "overlap=true", "bucket_parameters=2000"),
}
MORE = {
    "tensor alone": (2, 2, 1),
    "data alone": (2, 1, 1),
    "context": (2, 1, 1, "context=2"),
    "selective": (2, 2, 1, 'recompute="selective"', "sequence=true"),
    "full": (4, 2, 2, 'recompute="full"'),
    "context, tensor": (4, 2, 1, "context=2", "sequence=true"),
}
INTERLEAVED = {
    "interleaved": (2, 1, 2, "virtual=2"),
    "interleaved, sequence": (4, 2, 2, "virtual=2", "sequence=true", "overlap=true", 'recompute="full"'),
    # Two micro-batches a replica, all of which the first stage takes before the first gradient comes back.
    "interleaved, data": (
        *(4, 1, 2, "virtual=2"),
        *("distributed_optimizer=true", "overlap=true", "bucket_parameters=2000"),
    ),
}


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch("layout_worker.py", 1, 1, 1, folder)
    return folder


@pytest.fixture(scope="module")
def four_layers(launch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four_layers")
    launch("layout_worker.py", 1, 1, 1, folder, "layers=4")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_a_step_of_a_further_layout_equals_one_process(layout, alone, launch, tmp_path):
    check(layout, MORE[layout], alone, launch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", INTERLEAVED)
def test_a_step_of_an_interleaved_pipeline_equals_one_process(layout, four_layers, launch, tmp_path):
    check(layout, (*INTERLEAVED[layout], "layers=4"), four_layers, launch, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_equals_one_process(layout, alone, launch, tmp_path):
    check(layout, LAYOUTS[layout], alone, launch, tmp_path)


def check(layout, sizes, alone, launch, tmp_path) -> None:
    processes, tensor, pipeline, *keys = sizes
    launch("layout_worker.py", processes, tensor, pipeline, tmp_path, *keys)
    assert {file.stem for file in (alone / "untied").glob("*.safetensors")} >= set(tiny.objectives())
    for tie in ("tied", "untied"):
        compare(layout, tmp_path / tie, alone / tie)


def compare(layout: str, folder: Path, reference: Path) -> None:
    facts, expected = (json.loads((place / "facts.json").read_text()) for place in (folder, reference))
    assert expected["sums"]["sum/rl_clipped_high"] > 0, "the batch must exercise clipping"
    for name, value in expected["sums"].items():
        assert facts["sums"][name] == pytest.approx(value, rel=1e-10, abs=1e-10), name
    assert facts["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    if "data" not in layout:  # each replica has its own half of the sequences
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
