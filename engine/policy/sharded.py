"""Shards of a model in checkpoints of `megatron.core.dist_checkpointing`: written at one layout, read at any.

A local parameter lies in a global tensor of Megatron's naming; layers are the first axis of theirs. Which part it is
follows from the layout alone, so a shard can be written and read without a model, and `aapa convert` needs one process.
Keys and shapes are those of Megatron's own `GPTModel.sharded_state_dict()`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from torch import Tensor
from transformers import PretrainedConfig

from aapa.engine.errors import UserError
from aapa.engine.policy.dist_reader import DistReader
from aapa.engine.policy.dist_writer import Box, write_boxes
from aapa.engine.policy.names import Entry, entry, expected_shapes, layer_parameters, problem_text, split
from aapa.engine.policy.optimizer import Adam
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.stream import Chunks, chunks_of, global_layer

EMBEDDING, HEAD, NORM = "embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"
# Norms are saved under the linear layers that they come before, as TransformerEngine has them.
_FUSED = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


@dataclass(frozen=True)
class Piece:
    """A part of a local parameter and its place in a global tensor.

    Attributes:
        key: of the global tensor.
        rows: of the local parameter, as (start, stop); None for all of a parameter.
        fragments: (axis, index, count) of every axis of the global tensor that is cut into equal parts.
        layered: whether the global tensor has layers as its first axis.
    """

    key: str
    rows: tuple[int, int] | None
    fragments: tuple[tuple[int, int, int], ...]
    layered: bool

    def of(self, local: Tensor) -> Tensor:
        return local if self.rows is None else local[self.rows[0] : self.rows[1]]

    def shape(self, part: Tensor) -> tuple[int, ...]:
        """Of the global tensor."""
        sizes = list(((1,) if self.layered else ()) + tuple(part.shape))
        for axis, _, count in self.fragments:
            sizes[axis] *= count
        return tuple(sizes)

    def offsets(self, part: Tensor) -> tuple[int, ...]:
        """Where the part begins in the global tensor."""
        sizes = ((1,) if self.layered else ()) + tuple(part.shape)
        starts = [0] * len(sizes)
        for axis, index, _ in self.fragments:
            starts[axis] = index * sizes[axis]
        return tuple(starts)


def pieces(
    name: str, layer: int | None, item: Entry, rows: int, hf: PretrainedConfig, rank: int, ranks: int
) -> list[Piece]:
    """Where a local parameter of a tensor-parallel rank belongs.

    Args:
        name: of the parameter: its whole name, or that within its layer.
        layer: its global layer, if it has one.
        rows: of the local parameter.
    """
    key, layered = global_key(name), layer is not None
    above = ((0, layer, hf.num_hidden_layers),) if layer is not None else ()
    first = int(layered)
    if item.layout == "whole":
        return [Piece(key, None, above, layered)]
    if item.layout == "input":
        return [Piece(key, None, (*above, (first + 1, rank, ranks)), layered)]
    if item.layout == "gate_up":
        half = rows // 2
        return [
            Piece(key, (place * half, (place + 1) * half), (*above, (first, place * ranks + rank, 2 * ranks)), layered)
            for place in range(2)
        ]
    return [Piece(key, None, (*above, (first, rank, ranks)), layered)]


def global_key(name: str) -> str:
    """Key of the global tensor that a parameter is part of: `name` within its layer, or the whole name of another."""
    if name in (EMBEDDING, HEAD, NORM):
        return name
    for before, after in _FUSED.items():
        name = name.replace(before, after)
    return f"decoder.layers.{name}"


def global_shapes(hf: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor of a checkpoint, without rows that pad the vocabulary."""
    whole = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(hf).items()}
    found = {}
    for name, layer, item in model_parameters(hf):
        shape = tuple(split(item, whole, hf, 0, 1).shape)
        found[global_key(name)] = shape if layer is None else (hf.num_hidden_layers, *shape)
    return found


def model_parameters(hf: PretrainedConfig) -> Iterator[tuple[str, int | None, Entry]]:
    """(name, global layer, entry) of every parameter of the whole model, a tied embedding once."""
    yield EMBEDDING, None, entry(EMBEDDING, None)
    for layer in range(hf.num_hidden_layers):
        for name in layer_parameters(hf):
            yield name, layer, entry(f"decoder.layers.0.{name}", layer)
    yield NORM, None, entry(NORM, None)
    if not hf.tie_word_embeddings:
        yield HEAD, None, entry(HEAD, None)


@dataclass(frozen=True)
class Shard:
    """A local parameter of a tensor-parallel rank, or what the optimizer keeps of it, to be written.

    Attributes:
        prefix: of the keys, by which the optimizer's tensors lie beside the weights.
    """

    name: str
    layer: int | None
    item: Entry
    value: Tensor
    rank: int = 0
    ranks: int = 1
    prefix: str = ""


def write(directory: Path, shards: Iterable[Shard], hf: PretrainedConfig) -> None:
    """Write shards into an empty directory; a collective. Each shard must come once, from whatever rank."""
    boxes = []
    for shard in shards:
        for piece in pieces(shard.name, shard.layer, shard.item, shard.value.shape[0], hf, shard.rank, shard.ranks):
            part = piece.of(shard.value)
            value = part[None] if piece.layered else part
            boxes.append(Box(shard.prefix + piece.key, piece.shape(part), piece.offsets(part), value))
    write_boxes(directory, boxes)


def read_parameter(
    reader: DistReader,
    name: str,
    layer: int | None,
    item: Entry,
    local: Tensor,
    hf: PretrainedConfig,
    rank: int,
    ranks: int,
    prefix: str = "",
) -> None:
    """Fill a local parameter of a rank from a checkpoint of any layout; rows that pad the vocabulary become zero."""
    for piece in pieces(name, layer, item, local.shape[0], hf, rank, ranks):
        part = piece.of(local)
        offsets = piece.offsets(part)
        if item.layout == "vocabulary":
            there = max(0, min(part.shape[0], hf.vocab_size - offsets[0]))
            part[there:] = 0
            part = part[:there]
        if part.numel():
            reader.read(prefix + piece.key, offsets, part[None] if piece.layered else part)


def checkpoint_problems(reader: DistReader, hf: PretrainedConfig, prefix: str = "") -> list[str]:
    """What is missing, unknown or of another shape among a checkpoint's weights, a sentence each; or, by their prefix,
    among the tensors of an optimizer."""
    expected = {prefix + key: shape for key, shape in global_shapes(hf).items()}
    found = {
        key: shape
        for key, shape in reader.shapes.items()
        if (key.startswith(prefix) if prefix else not beside_weights(key))
    }
    problems = [
        f"expected a tensor {key!r} of shape {shape}, got none" for key, shape in expected.items() if key not in found
    ]
    problems += [
        f"expected no tensor {key!r}, for a {hf.model_type} model has none of that name"
        for key in sorted(found.keys() - expected.keys())
    ]
    for key, shape in expected.items():
        if key in found and not _fits(found[key], shape, key.removeprefix(prefix) in (EMBEDDING, HEAD)):
            problems.append(f"expected {key!r} to have shape {shape}, got {found[key]}")
    return problems


def _fits(found: tuple[int, ...], wanted: tuple[int, ...], padded: bool) -> bool:
    """Vocabularies may have more rows, which pad them."""
    return found == wanted or (padded and found[1:] == wanted[1:] and found[0] >= wanted[0])


def beside_weights(key: str) -> bool:
    """Whether a key is of something else that trainers save: optimizer states and the like."""
    return key.split(".")[0] in ("optimizer", "rng_state", "rerun_state_machine_state") or key.startswith("chained_")


def moment_prefix(name: str) -> str:
    """Of the keys of what the optimizer keeps, as Megatron has them."""
    return f"optimizer.state.{name}."


@torch.no_grad()
def read_model(reader: DistReader, model: Chunks, hf: PretrainedConfig, parallel: Parallel) -> None:
    """Fill this rank's parameters from a checkpoint of any layout; every rank reads its own parts, and no others.

    Raises:
        UserError: tensors that are missing, unknown or of another shape, by name.
    """
    problems = checkpoint_problems(reader, hf)
    if problems:
        raise UserError(problem_text(f"{reader.field}: {reader.directory}", problems))
    for parameter, name, layer, item in _parameters(model, hf):
        local = torch.empty(parameter.shape, dtype=parameter.dtype)
        read_parameter(reader, name, layer, item, local, hf, parallel.tensor_rank, parallel.tensor)
        parameter.data.copy_(local)


@torch.no_grad()
def read_optimizer(
    reader: DistReader, model: Chunks, optimizer: Adam, hf: PretrainedConfig, parallel: Parallel
) -> None:
    """Fill what this rank's optimizer keeps, from a checkpoint of any layout.

    Raises:
        UserError: tensors that are missing or of another shape, by name.
    """
    for kept in optimizer.names:
        prefix = moment_prefix(kept)
        problems = checkpoint_problems(reader, hf, prefix)
        if problems:
            raise UserError(problem_text(f"{reader.field}: {reader.directory}", problems))
        for parameter, name, layer, item in _parameters(model, hf):
            local = torch.empty(parameter.shape, dtype=optimizer.moment(parameter, kept).dtype)
            read_parameter(reader, name, layer, item, local, hf, parallel.tensor_rank, parallel.tensor, prefix)
            optimizer.load_moment(parameter, kept, local)


@torch.no_grad()
def write_model(
    directory: Path, model: Chunks, hf: PretrainedConfig, parallel: Parallel, optimizer: Adam | None = None
) -> None:
    """Write the model of all ranks, and what the optimizer keeps, into an empty directory that all of them see.

    A collective over all ranks. Of the ranks that hold the same parts each writes a share, which is what it holds in
    host memory meanwhile.
    """
    write(directory, _shards(model, hf, parallel, optimizer), hf)


def _shards(model: Chunks, hf: PretrainedConfig, parallel: Parallel, optimizer: Adam | None) -> Iterator[Shard]:
    # Ranks that hold the same parts: other replicas, and those of a context-parallel group.
    mine = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    writers = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    number = 0
    for parameter, name, layer, item in _parameters(model, hf):
        # The last stage's copy of a tied embedding is the first stage's.
        if name == EMBEDDING and not parallel.first_stage:
            continue
        for prefix, value in _values(parameter, optimizer):
            copy = item.layout == "whole" and parallel.tensor_rank > 0
            if number % writers == mine and not copy:
                yield Shard(name, layer, item, value.cpu(), parallel.tensor_rank, parallel.tensor, prefix)
            number += 1


def _values(parameter: Tensor, optimizer: Adam | None) -> Iterator[tuple[str, Tensor]]:
    """(prefix of the key, tensor) of a parameter and of what the optimizer keeps of it."""
    yield "", parameter.data
    if optimizer is not None:
        for name in optimizer.names:
            yield moment_prefix(name), optimizer.whole_moment(parameter, name)


def _parameters(model: Chunks, hf: PretrainedConfig) -> Iterator[tuple[Tensor, str, int | None, Entry]]:
    """(parameter, name within its layer or whole name, global layer, entry) of a rank's parameters."""
    for chunk in chunks_of(model):
        for full, parameter in chunk.named_parameters():
            layer = global_layer(chunk, full)
            name = full if layer is None else full.split(".", 3)[3]
            if full == HEAD and hf.tie_word_embeddings:
                name = EMBEDDING
            yield parameter, name, layer, entry(EMBEDDING if name == EMBEDDING else full, layer)
