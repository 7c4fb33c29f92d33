"""Started by torchrun: Megatron's own loading and saving of checkpoints, with real models at a layout.

convert_worker.py TENSOR PIPELINE SOURCES CHECKPOINTS OUTPUT: for every Hugging Face directory in SOURCES, the model
that Megatron loads from CHECKPOINTS/NAME is compared with it, and saved by Megatron into OUTPUT/NAME,
by us into OUTPUT/NAME-by-us.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject

sys.path.insert(0, str(Path(__file__).parent))

from aapa.engine.hf_directory import SafetensorsWeights, read_config
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.dist_reader import DistReader
from aapa.engine.policy.model import build_model
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.sharded import read_model, write_model
from aapa.engine.policy.stream import load, stream


def own_state(model: torch.nn.Module) -> dict:
    """Megatron's own mapping of the model's parameters, without what is none of them."""
    state = model.sharded_state_dict()
    return {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}


def check(model: torch.nn.Module, weights: SafetensorsWeights, config, parallel: Parallel, what: str) -> None:
    got = dict(stream(model, config, parallel))
    assert got.keys() == set(weights), (what, got.keys() ^ set(weights))
    for name, tensor in got.items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name]), (what, name)


def pass_through(source: Path, checkpoint: Path, output: Path, parallel: Parallel) -> None:
    config = read_config(source)
    weights = SafetensorsWeights(source, config=config)
    (dtype,) = set(weights.types().values())
    theirs = build_model(config, parallel, dtype)
    for parameter in theirs.parameters():
        parameter.data.fill_(9)
    loaded = dist_checkpointing.load(own_state(theirs), str(checkpoint))
    for name, parameter in theirs.named_parameters():
        if name in loaded:
            parameter.data.copy_(loaded[name])
    check(theirs, weights, config, parallel, f"{source.name}, loaded by Megatron")
    ours = build_model(config, parallel, dtype)
    for parameter in ours.parameters():
        parameter.data.fill_(9)
    read_model(DistReader(checkpoint, "checkpoint"), ours, config, parallel)
    check(ours, weights, config, parallel, f"{source.name}, loaded by us")
    if config.tie_word_embeddings and parallel.last_stage and parallel.pipeline > 1:
        assert not (ours.head_weight() == 9).any(), "the last stage's copy of a tied embedding is loaded, too"
    load(ours, config, parallel, weights)
    by_us = output.with_name(f"{output.name}-by-us")
    if parallel.is_main:
        output.mkdir(parents=True)
        by_us.mkdir()
    parallel.barrier()
    dist_checkpointing.save(own_state(ours), str(output))
    write_model(by_us, ours, config, parallel)
    assert DistReader(by_us, "ours").shapes == DistReader(output, "Megatron's").shapes


def main(tensor: int, pipeline: int, sources: Path, checkpoints: Path, output: Path) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(tensor, pipeline, timeout_seconds=120)
    for source in sorted(sources.iterdir()):
        pass_through(source, checkpoints / source.name, output / source.name, parallel)
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
