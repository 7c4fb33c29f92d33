"""Twenty steps, SFT then A-GRPO on fixed rollouts, come out the same at every layout, in real processes over gloo."""

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
# Name: processes, tensor, pipeline, further keys.
LAYOUTS = {"1×2×1 interleaved": (2, 1, 2, "virtual=2")}
MORE = {
    "2×1×1": (2, 2, 1),
    "2×1×1 sequence": (2, 2, 1, "sequence=true"),
    "1×2×1": (2, 1, 2),
    "2×2×1": (4, 2, 2),
    "1×1×2": (2, 1, 1),
    "1×1×2 distributed optimizer": (2, 1, 1, "distributed_optimizer=true"),
    "1×1×2 distributed optimizer, overlap": (
        *(2, 1, 1),
        *("distributed_optimizer=true", "overlap=true", "bucket_parameters=4000"),
    ),
    "context 2": (2, 1, 1, "context=2"),
    "full recomputation": (1, 1, 1, 'recompute="full"'),
}


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch("twenty_worker.py", 1, 1, 1, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_steps_equal_one_process(layout, alone, launch, tmp_path):
    check(LAYOUTS[layout], alone, launch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE)
def test_twenty_steps_of_a_further_layout_equal_one_process(layout, alone, launch, tmp_path):
    check(MORE[layout], alone, launch, tmp_path)


def check(sizes: tuple, alone: Path, launch, folder: Path) -> None:
    processes, tensor, pipeline, *keys = sizes
    launch("twenty_worker.py", processes, tensor, pipeline, folder, *keys)
    losses, wanted = (json.loads((place / "losses.json").read_text()) for place in (folder, alone))
    assert len(losses) == 20
    # A sum of rl and anchor terms may come near 0, where nothing is relative.
    assert losses == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    gradients, wanted_gradients = (load_file(place / "gradients.safetensors") for place in (folder, alone))
    assert gradients.keys() == wanted_gradients.keys() and len(gradients) > 2 * 20
    for stage in ("sft ", "a-grpo "):
        ours, theirs = (of_stage(found, stage) for found in (gradients, wanted_gradients))
        assert distance(flat(ours), flat(theirs)) <= 1e-5, stage
        if stage == "sft ":  # of equal weights; A-GRPO's come after ten updates, which have added up roundings
            for name, want in theirs.items():
                assert distance(ours[name], want) <= 1e-5, name
    start = tiny.hf_model(True, torch.float32, layers=4).state_dict()
    weights, wanted_weights = (load_file(place / "weights.safetensors") for place in (folder, alone))
    moved = {name: weight - start[name] for name, weight in wanted_weights.items()}
    ours = {name: weight - start[name] for name, weight in weights.items()}
    assert distance(flat(ours), flat(moved)) <= 1e-3
    assert flat(moved).norm() / flat(start).norm() > 0.01, "twenty steps must move the policy"


def of_stage(tensors: dict[str, torch.Tensor], stage: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(stage)}


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(
        [tensor.flatten().double() for name, tensor in sorted(tensors.items()) if name != "lm_head.weight"]
    )


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """‖got - want‖ / ‖want‖."""
    return float((got.double() - want.double()).norm() / want.double().norm())
