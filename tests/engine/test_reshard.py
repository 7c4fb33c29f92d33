"""A checkpoint saved at one parallel layout goes on at any other: the same numbers, the same next steps."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

DISTRIBUTED = "distributed_optimizer=true"
# Processes, tensor, pipeline, further keys: of the save, and of who goes on.
CASES = {
    "TP2 to PP2": ((2, 2, 1), (2, 1, 2)),
}
MORE = {
    "two replicas with the distributed optimizer to one process": ((2, 1, 1, DISTRIBUTED), (1, 1, 1)),
    "one process to TP2 with sequence parallelism": ((1, 1, 1), (2, 2, 1, "sequence=true")),
    "PP2 interleaved to two replicas with the distributed optimizer": (
        (2, 1, 2, "virtual=2"),
        (2, 1, 1, DISTRIBUTED, "overlap=true"),
    ),
    "CP2 to TP2 x PP2": ((2, 1, 1, "context=2"), (4, 2, 2)),
    "TP2 x two replicas, distributed, to PP2": ((4, 2, 1, DISTRIBUTED), (2, 1, 2)),
}


def check(layouts, dtype, launch, folder) -> None:
    (folder / "checkpoint").mkdir()
    for what, (processes, *words) in zip(("save", "load"), layouts, strict=True):
        tensor, pipeline, *keys = words
        launch("reshard_worker.py", processes, what, dtype, tensor, pipeline, folder, *keys)
    saved, loaded = (load_file(folder / what / "held.safetensors") for what in ("save", "load"))
    assert {name.split()[0] for name in saved} == {"weight", "exp_avg", "exp_avg_sq"} | (
        {"main"} if dtype == "bfloat16" else set()
    )
    assert saved.keys() == loaded.keys()
    for name, value in saved.items():
        assert value.dtype == loaded[name].dtype and torch.equal(value, loaded[name]), name
    before, after = (json.loads((folder / what / "losses.json").read_text()) for what in ("save", "load"))
    assert after == pytest.approx(before, rel=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.multiprocess
@pytest.mark.parametrize("case", CASES)
def test_a_save_goes_on_elsewhere(case, launch, tmp_path):
    check(CASES[case], "float32", launch, tmp_path)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", MORE)
def test_a_save_goes_on_at_further_layouts(case, dtype, launch, tmp_path):
    check(MORE[case], dtype, launch, tmp_path)
