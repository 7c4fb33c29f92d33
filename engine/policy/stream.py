"""Tensors of a sharded model as a stream of (Hugging Face name, whole tensor), and back.

One stream feeds rollout engines, writes Hugging Face checkpoints and carries optimizer moments, so that nothing on
disk depends on the parallel layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig

from aapa.engine.policy.model import PolicyModel
from aapa.engine.policy.names import EMBEDDING, Entry, entry, join, problem_text, split, tensor_problems
from aapa.engine.policy.parallel import Parallel

# Most bytes of whole tensors that are gathered at once; a larger tensor is gathered alone.
BUCKET_BYTES = 256 * 2**20

# A model, or the chunks of an interleaved schedule.
Chunks = PolicyModel | Sequence[PolicyModel]


@runtime_checkable
class Shaped(Protocol):
    """A mapping of tensors that knows their shapes without reading them."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


@dataclass(frozen=True)
class Part:
    """What is known of a parameter's part on every rank of its pipeline stage."""

    entry: Entry
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def chunks_of(model: Chunks) -> list[PolicyModel]:
    return [model] if isinstance(model, PolicyModel) else list(model)


def local_entries(model: PolicyModel, hf: PretrainedConfig) -> Iterator[tuple[Entry, Tensor]]:
    """This chunk's parameters with their entries, without the last stage's copy of a tied embedding."""
    for name, parameter in model.named_parameters():
        if name == "output_layer.weight" and hf.tie_word_embeddings:
            continue
        yield entry(name, global_layer(model, name)), parameter


def global_layer(model: PolicyModel, name: str) -> int | None:
    parts = name.split(".")
    if parts[:2] != ["decoder", "layers"]:
        return None
    return model.decoder.layers[int(parts[2])].layer_number - 1


@torch.no_grad()
def stream(
    model: Chunks,
    hf: PretrainedConfig,
    parallel: Parallel,
    value: Callable[[Tensor], Tensor] = lambda parameter: parameter.data,
    bucket_bytes: int = BUCKET_BYTES,
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors of `value(parameter)` in the order of the model, on every rank of the replica.

    A collective over the replica: all its ranks must exhaust it. Where the model is split, tensors travel in buckets,
    and beside the shard a rank holds no more than one bucket; where it is not, they are views of the parameters.
    """
    chunks = chunks_of(model)
    for place in range(len(chunks)):
        for stage in range(parallel.pipeline):
            entries = list(local_entries(chunks[place], hf)) if stage == parallel.pipeline_rank else []
            if parallel.tensor * parallel.pipeline == 1:
                for item, parameter in entries:
                    yield from join(item, [value(parameter)], hf).items()
            else:
                yield from _from_stage(entries, value, hf, parallel, stage, bucket_bytes)


def _from_stage(
    entries: list[tuple[Entry, Tensor]],
    value: Callable[[Tensor], Tensor],
    hf: PretrainedConfig,
    parallel: Parallel,
    stage: int,
    bucket_bytes: int,
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one stage's parameters, a bucket at a time."""
    mine = stage == parallel.pipeline_rank
    parts = []
    if mine:
        # The type is that of the values: moments of 16-bit parameters are of 32 bits.
        dtype = value(entries[0][1]).dtype if entries else None
        parts = [Part(item, tuple(parameter.shape), dtype) for item, parameter in entries if dtype is not None]
    parts = _object_from_stage(parts, stage, parallel)
    for bucket in _buckets(parts, parallel.tensor, bucket_bytes):
        gathered = _gathered(
            [parts[i] for i in bucket], [value(entries[i][1]) for i in bucket] if mine else None, parallel, stage
        )
        start = 0
        for index in bucket:
            part = parts[index]
            shards = [row[start : start + part.numel].view(part.shape) for row in gathered]
            start += part.numel
            if part.entry.layout == "whole":
                shards = [shards[0].clone()]  # a view in someone's hands would keep the whole bucket
            yield from join(part.entry, shards, hf).items()
        del gathered, shards


def _object_from_stage(value: Any, stage: int, parallel: Parallel) -> Any:
    if parallel.pipeline == 1:
        return value
    box = [value]
    source = dist.get_global_rank(parallel.pipeline_group, stage)
    dist.broadcast_object_list(box, src=source, group=parallel.pipeline_group)
    return box[0]


def _buckets(parts: list[Part], ranks: int, most: int) -> Iterator[list[int]]:
    """Consecutive parameters of which a bucket holds this rank's parts, those of all ranks, and what is joined of them:
    the tensor that the reader has, and the next one."""
    bucket: list[int] = []
    held = largest = 0
    for index, part in enumerate(parts):
        whole = part.numel * part.dtype.itemsize * ranks
        if bucket and held + whole + whole // ranks + 2 * max(largest, whole) > most:
            yield bucket
            bucket, held, largest = [], 0, 0
        bucket.append(index)
        held += whole + whole // ranks
        largest = max(largest, whole)
    if bucket:
        yield bucket


def _gathered(parts: list[Part], values: list[Tensor] | None, parallel: Parallel, stage: int) -> Tensor:
    """[tensor-parallel ranks, elements] the bucket's parts of all ranks, on every stage."""
    elements, dtype = sum(part.numel for part in parts), parts[0].dtype
    gathered = torch.empty(parallel.tensor, elements, dtype=dtype, device=parallel.device)
    if values is not None:
        flat = torch.cat([value.reshape(-1) for value in values])
        if parallel.tensor == 1:
            gathered[0].copy_(flat)
        else:
            dist.all_gather_into_tensor(gathered.view(-1), flat, group=parallel.tensor_group)
    if parallel.pipeline > 1:
        source = dist.get_global_rank(parallel.pipeline_group, stage)
        dist.broadcast(gathered, src=source, group=parallel.pipeline_group)
    return gathered


@torch.no_grad()
def load(
    model: Chunks,
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
    for chunk in chunks_of(model):
        for name, parameter in chunk.named_parameters():
            item = entry(name, global_layer(chunk, name))
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
