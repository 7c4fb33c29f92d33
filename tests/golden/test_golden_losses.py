"""Fifty steps of every objective on a fixed tiny model and data, against the losses stored in losses.json.

On a machine of the type that stored them, with the same implementation of the head, the losses are equal bit for bit,
elsewhere to 1e-6. After a change that is
meant to change them: `python tests/golden/test_golden_losses.py` writes them anew, and the commit says why.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

import tiny

from aapa import Objective
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.kernels.dispatch import resolve
from aapa.packing import pack

STORED = Path(__file__).parent / "losses.json"
STEPS = 50


def machine() -> dict[str, str]:
    """What decides the last bits: processor, and what computes on it."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    head = resolve("linear_policy_loss").__name__.split(".")[-2]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, "torch": torch.__version__, "capability": capability, "head": head}


def losses(objective: Objective, parallel: Parallel) -> list[float]:
    """Total loss of each step, in float64, on the same rollouts and experts again and again.

    Nothing is sampled: a token that falls the other way by the last bit would make another curve of it.
    """
    policy = MegatronPolicy(tiny.config(), parallel, torch.float64)
    policy.load_weights(tiny.hf_model().state_dict())
    # Megatron clips float32 gradients only.
    policy.start_stage(AdamSettings(weight_decay=0.01, clip_grad=0.0))
    sequences = tiny.rollouts() + tiny.experts()
    found = []
    for step in range(STEPS):
        sums = policy.train_step(pack(sequences, 60, objective, step=step), objective, 1e-3).sums
        found.append(sum(value for name, value in sums.items() if name.startswith("loss/")))
    return found


@pytest.fixture(scope="module")
def parallel() -> Iterator[Parallel]:
    torch.set_num_threads(1)
    yield groups.start()
    groups.stop()


@pytest.mark.parametrize("name", tiny.objectives())
def test_losses_are_those_stored(name: str, parallel: Parallel) -> None:
    stored = json.loads(STORED.read_text())
    expected, got = stored["losses"][name], losses(tiny.objectives()[name], parallel)
    assert len(got) == STEPS
    assert abs(got[-1] - got[0]) > 1e-3, "training must move the loss, or the curve says nothing"
    if stored["machine"] == machine():
        assert got == expected
    else:
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_is_stored_is_what_is_tested() -> None:
    assert json.loads(STORED.read_text())["losses"].keys() == tiny.objectives().keys()


def write() -> None:
    """Store the losses of this machine."""
    torch.set_num_threads(1)
    parallel = groups.start()
    found = {name: losses(objective, parallel) for name, objective in tiny.objectives().items()}
    STORED.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n")
    groups.stop()


if __name__ == "__main__":
    write()
