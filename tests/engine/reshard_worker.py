"""Started by torchrun: a policy in training is saved at one layout, or goes on from a save at another.

reshard_worker.py save|load DTYPE TENSOR PIPELINE FOLDER [KEY=VALUE…]: keys of the layout and of `TrainSettings`.
What the policy has then, whole, and what its next step gives go to FOLDER/<what>.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from aapa import SFT
from aapa.batch import BatchCounts, Sequence
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.settings import TrainSettings
from aapa.packing import pack

STEPS, LAYERS = 3, 4


def main(what: str, dtype: torch.dtype, tensor: int, pipeline: int, folder: Path, keys: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    layout = {name: keys.pop(name) for name in ("context", "sequence", "virtual") if name in keys}
    parallel = groups.start(tensor, pipeline, timeout_seconds=120, **layout)
    policy = MegatronPolicy(tiny.config(True, LAYERS), parallel, dtype, TrainSettings(**keys))
    experts = [Sequence(s.prompt, s.response, "expert") for s in tiny.rollouts(12)][parallel.data_rank :: parallel.data]
    counts = BatchCounts.from_vector(parallel.sum_over_data(BatchCounts.of(experts).vector()))
    batches = pack(experts, 60, SFT(), counts, 0)
    checkpoint = folder / "checkpoint"
    if what == "save":
        policy.load_weights(tiny.hf_model(True, torch.float32, layers=LAYERS).state_dict())
        policy.start_stage(AdamSettings(weight_decay=0.1))
        for _ in range(STEPS):
            policy.train_step(batches, SFT(), 1e-3)
        policy.save(checkpoint, optimizer=True)
    else:
        policy.load(checkpoint)
        policy.start_stage(AdamSettings(weight_decay=0.1))
        policy.load_optimizer(checkpoint)
        policy.optimizer.set_steps(STEPS)
    held = {f"weight {name}": tensor.clone() for name, tensor in policy.weights()}
    for kept in policy.optimizer.names:
        held |= {f"{kept} {name}": tensor.clone() for name, tensor in policy.moments(kept)}
    losses = [policy.train_step(batches, SFT(), 1e-3).sums["loss/sft"] for _ in range(2)]
    if parallel.is_main:
        (folder / what).mkdir()
        save_file(held, folder / what / "held.safetensors")
        (folder / what / "losses.json").write_text(json.dumps(losses))
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    action, kind, tensor_ranks, stages, place, *words = sys.argv[1:]
    pairs = (word.split("=", 1) for word in words)
    settings = {name: json.loads(value) for name, value in pairs}
    main(action, getattr(torch, kind), int(tensor_ranks), int(stages), Path(place), settings)
