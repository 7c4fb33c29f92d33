"""Started by torchrun: what the real policy of a layout holds on each rank, written to files.

plan_worker.py TENSOR PIPELINE OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import models

from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import MOMENTS, AdamSettings
from aapa.engine.policy.parallel import Parallel

CASES = {
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "num_hidden_layers": 4}),
}


def held(parallel: Parallel, family: str, changes: dict) -> dict:
    policy = MegatronPolicy(models.config(family, **changes), parallel, torch.float32)
    policy.start_stage(AdamSettings())
    parameters = dict(policy.model.named_parameters())
    moments = [policy.optimizer.moment(p, name) for p in parameters.values() for name in MOMENTS]
    return {
        "shapes": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "weights": sum(p.numel() * p.element_size() for p in parameters.values()),
        "gradients": sum(p.main_grad.numel() * p.main_grad.element_size() for p in parameters.values()),
        "optimizer": sum(moment.numel() * moment.element_size() for moment in moments),
        "stage": parallel.pipeline_rank,
        "data_rank": parallel.data_rank,
    }


def main(tensor: int, pipeline: int, output: Path) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(tensor, pipeline, timeout_seconds=120)
    found = {name: held(parallel, *case) for name, case in CASES.items()}
    (output / f"rank-{parallel.rank}.json").write_text(json.dumps(found))
    groups.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
