"""Started by torchrun: loss, gradients and one optimizer step of the tiny policy at a layout, written to files.

layout_worker.py TENSOR PIPELINE OUTPUT [KEY=VALUE…]: further keys of the layout and of `TrainSettings`, and `layers`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from aapa.batch import BatchCounts
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings
from aapa.engine.policy.stream import stream
from aapa.packing import pack


def step(parallel: Parallel, tied: bool, output: Path, settings: TrainSettings, layers: int) -> None:
    hf, objective = tiny.config(tied, layers), tiny.objective()
    mine = tiny.rollouts()[parallel.data_rank :: parallel.data]
    counts = BatchCounts.from_vector(parallel.sum_over_data(BatchCounts.of(mine).vector()))
    batches = pack(mine, 40, objective, counts)

    # Megatron's distributed optimizer knows no float64.
    policy = MegatronPolicy(hf, parallel, torch.float64, replace(settings, distributed_optimizer=False))
    policy.load_weights(tiny.hf_model(tied, layers=layers).state_dict())
    sums = policy.gradients(batches, objective)
    gradients = dict(stream(policy.chunks, hf, parallel, lambda p: p.main_grad.clone()))
    logprobs = [logprob for logprob, _ in policy.logprobs(batches)]

    single = MegatronPolicy(hf, parallel, torch.float32, settings)
    single.load_weights(tiny.hf_model(tied, torch.float32, layers=layers).state_dict())
    # A large epsilon: Adam's first step is the sign of the gradient, which rounding flips where it is nearly zero.
    single.start_stage(AdamSettings(weight_decay=0.1, clip_grad=0.5, eps=1e-2))
    norm = single.train_step(batches, objective, 1e-2).grad_norm
    weights = dict(single.weights())
    moments = dict(single.moments("exp_avg"))
    others = {} if tied else every_objective(policy, parallel)
    if parallel.is_main:
        output.mkdir()
        for name, values in others.items():
            save_file(values, output / f"{name}.safetensors")
        save_file(gradients, output / "gradients.safetensors")
        save_file(weights, output / "weights.safetensors")
        save_file(moments, output / "moments.safetensors")
        facts = {"sums": sums, "grad_norm": norm, "logprob": [float(lp.sum()) for lp in logprobs]}
        (output / "facts.json").write_text(json.dumps(facts))


def every_objective(policy: MegatronPolicy, parallel: Parallel) -> dict[str, dict[str, torch.Tensor]]:
    """Loss and gradients of every objective at step 20, on rollouts and experts."""
    found = {}
    everything = tiny.rollouts() + tiny.experts()
    for sequence in everything:
        sequence.correction = None if sequence.old_logprob is None else 0.5 + (sequence.old_logprob / 9).exp()
    mine = everything[parallel.data_rank :: parallel.data]
    counts = BatchCounts.from_vector(parallel.sum_over_data(BatchCounts.of(mine).vector()))
    for name, objective in tiny.objectives().items():
        sums = policy.gradients(pack(mine, 40, objective, counts, step=20), objective)
        values = dict(stream(policy.chunks, policy.hf, parallel, lambda p: p.main_grad.clone()))
        found[name] = values | {key: torch.tensor(value, dtype=torch.float64) for key, value in sums.items()}
    return found


def main(tensor: int, pipeline: int, output: Path, keys: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    layers = keys.pop("layers", 2)
    layout = {name: keys.pop(name) for name in ("context", "sequence", "virtual") if name in keys}
    parallel = groups.start(tensor, pipeline, timeout_seconds=60, **layout)
    for tied in (True, False):
        step(parallel, tied, output / ("tied" if tied else "untied"), TrainSettings(**keys), layers)
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    pairs = (word.split("=", 1) for word in sys.argv[4:])
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), {name: json.loads(value) for name, value in pairs})
