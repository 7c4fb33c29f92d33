"""Tensors of a sharded model as a stream of (Hugging Face name, whole tensor), and back.

One stream feeds rollout engines, writes Hugging Face checkpoints and carries optimizer moments, so that nothing on
disk depends on the parallel layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig

from aapa.engine.policy.model import PolicyModel
from aapa.engine.policy.names import EMBEDDING, Entry, entry, join, problem_text, split, tensor_problems
from aapa.engine.policy.parallel import Parallel


@runtime_checkable
class Shaped(Protocol):
    """A mapping of tensors that knows their shapes without reading them."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


def local_entries(model: PolicyModel, hf: PretrainedConfig) -> Iterator[tuple[Entry, Tensor]]:
    """This stage's parameters with their entries, without the last stage's copy of a tied embedding."""
    for name, parameter in model.named_parameters():
        if name == "output_layer.weight" and hf.tie_word_embeddings:
            continue
        yield entry(name, _global_layer(model, name)), parameter


def _global_layer(model: PolicyModel, name: str) -> int | None:
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return None
    return model.decoder.layers[int(parts[2])].layer_number - 1


@torch.no_grad()
def stream(
    model: PolicyModel,
    hf: PretrainedConfig,
    parallel: Parallel,
    value: Callable[[Tensor], Tensor] = lambda parameter: parameter.data,
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of `value(parameter)`, one after another, on every rank of the replica.

    A collective over the replica: all its ranks must exhaust it. At no time is more than one parameter gathered.
    """
    for stage in range(parallel.pipeline):
        mine = stage == parallel.pipeline_rank
        entries = list(local_entries(model, hf)) if mine else []
        for index in range(_count(len(entries), stage, parallel)):
            whole: dict[str, Tensor] = {}
            if mine:
                item, parameter = entries[index]
                whole = join(item, _gather_tensor(value(parameter), parallel), hf)
            yield from _broadcast(whole, stage, parallel).items()


def _count(mine: int, stage: int, parallel: Parallel) -> int:
    return mine if parallel.pipeline == 1 else _object_from_stage(mine, stage, parallel)


def _object_from_stage(value, stage: int, parallel: Parallel):  # type: ignore[no-untyped-def]
    box = [value]
    source = dist.get_global_rank(parallel.pipeline_group, stage)
    dist.broadcast_object_list(box, src=source, group=parallel.pipeline_group)
    return box[0]


def _gather_tensor(tensor: Tensor, parallel: Parallel) -> list[Tensor]:
    if parallel.tensor == 1:
        return [tensor]
    shards = [torch.empty_like(tensor) for _ in range(parallel.tensor)]
    dist.all_gather(shards, tensor.contiguous(), group=parallel.tensor_group)
    return shards


def _broadcast(whole: dict[str, Tensor], stage: int, parallel: Parallel) -> dict[str, Tensor]:
    if parallel.pipeline == 1:
        return whole
    header = [(name, tuple(t.shape), t.dtype) for name, t in whole.items()]
    header = _object_from_stage(header, stage, parallel)
    source = dist.get_global_rank(parallel.pipeline_group, stage)
    result = {}
    for name, shape, dtype in header:
        tensor = whole[name].contiguous() if name in whole else torch.empty(shape, dtype=dtype, device=parallel.device)
        dist.broadcast(tensor, src=source, group=parallel.pipeline_group)
        result[name] = tensor
    return result


@torch.no_grad()
def load(
    model: PolicyModel,
    hf: PretrainedConfig,
    parallel: Parallel,
    whole: Mapping[str, Tensor],
    put: Callable[[Tensor, Tensor], object] = lambda parameter, value: parameter.data.copy_(value),
    source: str = "weights",
) -> None:
    """Give every local parameter its part of the whole tensors; the last stage's tied copy included.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape, by name.
    """
    problems = tensor_problems(hf, _shapes(whole))
    if problems:
        raise ValueError(problem_text(source, problems))
    for name, parameter in model.named_parameters():
        item = entry(name, _global_layer(model, name))
        if name == "output_layer.weight" and hf.tie_word_embeddings:
            item = Entry((EMBEDDING,), "vocabulary")
        local = split(item, whole, hf, parallel.tensor_rank, parallel.tensor)
        assert local.shape == parameter.shape, f"{name}: {tuple(local.shape)} is not {tuple(parameter.shape)}"
        put(parameter, local.to(parameter.device))


def _shapes(whole: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...]]:
    """Shapes by name; files tell them without reading the tensors."""
    if isinstance(whole, Shaped):
        return whole.shapes()
    return {name: tuple(tensor.shape) for name, tensor in whole.items()}
