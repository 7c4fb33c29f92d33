"""Started by torchrun: models from their directories into the policy at a layout, and out again.

model_layout_worker.py TENSOR PIPELINE SOURCES OUTPUT: every directory in SOURCES comes out under its name in OUTPUT,
with its log-probs, gradients of SFT and their norm beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import models

from aapa import SFT
from aapa.engine.hf_directory import Origin, SafetensorsWeights, read_config, write_directory
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.stream import stream
from aapa.packing import pack


def pass_through(source: Path, output: Path, parallel: Parallel) -> None:
    config = read_config(source)
    weights = SafetensorsWeights(source, config=config)
    policy = MegatronPolicy(config, parallel, torch.float32)
    policy.load_weights(weights)
    ((logprob, _),) = policy.logprobs(pack(models.sequences(), 1000))
    write_directory(
        output,
        config,
        policy.weights(),
        None,
        write=parallel.is_main,
        origin=Origin.of(weights),
        original_types=True,
        shard_bytes=9_000,
    )
    exact = MegatronPolicy(config, parallel, torch.float64)
    exact.load_weights(weights)
    batches = pack(models.sequences()[parallel.data_rank :: parallel.data], 1000, SFT())
    exact.gradients(batches, SFT())
    gradients = dict(stream(exact.model, config, parallel, lambda parameter: parameter.main_grad.clone()))
    policy.start_stage(AdamSettings(clip_grad=0.0))
    norm = torch.tensor(policy.train_step(batches, SFT(), 0.0).grad_norm)
    if parallel.is_main:
        save_file(gradients | {"logprob": logprob, "norm": norm}, output.with_suffix(".figures"))


def main(tensor: int, pipeline: int, sources: Path, output: Path) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(tensor, pipeline, timeout_seconds=120)
    for source in sorted(sources.iterdir()):
        pass_through(source, output / source.name, parallel)
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
