"""Started by torchrun: what the real policy of a layout holds on each rank, written to files.

plan_worker.py LAYOUT OUTPUT: the fields of `Layout` as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

import models

from aapa.engine.plan.layout import Layout
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings

CASES = {
    "tied": ("qwen3", {"tie_word_embeddings": True, "num_hidden_layers": 4}, "float32"),
    "untied": ("qwen3", {"tie_word_embeddings": False, "num_hidden_layers": 4}, "bfloat16"),
    "biases": ("llama", {"attention_bias": True, "num_hidden_layers": 4}, "float32"),
}


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(parallel: Parallel, layout: Layout, family: str, changes: dict, dtype: str) -> dict:
    settings = TrainSettings(layout.distributed_optimizer, layout.overlap, layout.recompute)
    policy = MegatronPolicy(models.config(family, **changes), parallel, getattr(torch, dtype), settings)
    policy.start_stage(AdamSettings())
    buffers = [buffer for part in policy.ddp for buffer in part.buffers]
    weights = [parameter for chunk in policy.chunks for parameter in chunk.parameters()]
    if layout.distributed_optimizer:  # the parameters are views of padded buffers
        weights = [buffer.param_data for buffer in buffers]
    return {
        "shapes": [
            {name: list(parameter.shape) for name, parameter in chunk.named_parameters()} for chunk in policy.chunks
        ],
        "weights": size(weights),
        "gradients": size(buffer.grad_data for buffer in buffers),
        "optimizer": size(policy.optimizer.tensors()),
    }


def main(layout: Layout, output: Path) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(
        layout.tensor,
        layout.pipeline,
        timeout_seconds=120,
        context=layout.context,
        sequence=layout.sequence,
        virtual=layout.virtual,
    )
    found = {name: held(parallel, layout, *case) for name, case in CASES.items()}
    place = {
        "stage": parallel.pipeline_rank,
        "data_rank": dist.get_rank(parallel.gradient_group),
        "groups": {
            "tensor": dist.get_process_group_ranks(parallel.tensor_group),
            "pipeline": dist.get_process_group_ranks(parallel.pipeline_group),
            "context": dist.get_process_group_ranks(parallel.context_group),
            "data": dist.get_process_group_ranks(parallel.data_group),
        },
    }
    (output / f"rank-{parallel.rank}.json").write_text(json.dumps({"cases": found} | place))
    groups.stop()


if __name__ == "__main__":
    main(Layout(**json.loads(sys.argv[1])), Path(sys.argv[2]))
