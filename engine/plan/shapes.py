"""Parameters of a rank at a layout, cut on the meta device by the functions that cut real weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from aapa.engine.plan.layout import Layout
from aapa.engine.policy.names import EMBEDDING, Entry, entry, expected_shapes, layer_parameters, split

# Megatron aligns parameters, and the ends of buckets, in the buffers of the distributed optimizer (in elements).
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128


@dataclass(frozen=True)
class Parameter:
    """A parameter of one rank; `shared`: an embedding that another stage has a copy of."""

    name: str
    shape: tuple[int, ...]
    shared: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class StateBytes:
    """Bytes that a rank holds all the time; exact."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def stage_parameters(hf: PretrainedConfig, layout: Layout, stage: int) -> list[list[Parameter]]:
    """Parameters of each chunk of a pipeline stage, of any tensor-parallel rank, in the order of the module.

    All tensor-parallel ranks have the same shapes, for the vocabulary is padded.
    """
    chunks = []
    for number, layers in enumerate(layout.layers(stage, hf.num_hidden_layers)):
        first = stage == 0 and number == 0
        last = stage == layout.pipeline - 1 and number == layout.virtual - 1
        chunks.append(list(_chunk(hf, layout, layers, first, last)))
    return chunks


def _chunk(hf: PretrainedConfig, layout: Layout, layers: list[int], first: bool, last: bool) -> Iterator[Parameter]:
    tied = bool(hf.tie_word_embeddings)
    # Stages that have only one end of a tied embedding have a copy of their own, whose gradients are summed.
    copied = tied and not (first and last) and layout.pipeline > 1
    shapes = local_shapes(hf, layout.tensor)
    if first:
        yield Parameter("embedding.word_embeddings.weight", shapes["embedding.word_embeddings.weight"], copied)
    for place in range(len(layers)):
        for name in layer_parameters(hf):
            yield Parameter(f"decoder.layers.{place}.{name}", shapes[name])
    if last:
        yield Parameter("decoder.final_layernorm.weight", shapes["decoder.final_layernorm.weight"])
        if not (tied and first):
            yield Parameter("output_layer.weight", shapes["output_layer.weight"], copied)


def local_shapes(hf: PretrainedConfig, tensor: int) -> dict[str, tuple[int, ...]]:
    """Local shapes of a layer's parameters by their names in it, and of the others by their whole names."""
    key = (*(getattr(hf, name) for name in _DECISIVE), tensor)
    if key not in _SHAPES:
        _SHAPES[key] = _cut_shapes(hf, tensor)
    return _SHAPES[key]


# A search asks for the same few shapes again and again.
_SHAPES: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
_DECISIVE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "tie_word_embeddings",
)


def _cut_shapes(hf: PretrainedConfig, tensor: int) -> dict[str, tuple[int, ...]]:
    # All layers are alike.
    shapes = {name: shape for name, shape in expected_shapes(hf).items() if _layer_of(name) in (None, "0")}
    whole = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    names = {f"decoder.layers.0.{name}": name for name in layer_parameters(hf)}
    ends = ("embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight")
    found = {}
    for full, name in {**names, **dict(zip(ends, ends, strict=True))}.items():
        item = entry(full, 0)
        if full == "output_layer.weight" and hf.tie_word_embeddings:
            item = Entry((EMBEDDING,), "vocabulary")
        found[name] = tuple(split(item, whole, hf, 0, tensor).shape)
    return found


def _layer_of(name: str) -> str | None:
    """The layer in a Hugging Face name."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["model", "layers"] else None


def state_bytes(hf: PretrainedConfig, layout: Layout, stage: int, data_rank: int, width: int) -> StateBytes:
    """Bytes of weights, gradients and optimizer states on a rank.

    Gradients are float32 (`main_grad`). Adam has two float32 moments of each parameter, and a float32 copy of it where
    parameters are narrower.

    Args:
        stage: pipeline rank.
        data_rank: place among the ranks that share parameters (data x context).
        width: bytes of a parameter's type.
    """
    per_parameter = 8 if width >= 4 else 12
    weights = gradients = optimizer = 0
    for number, parameters in enumerate(stage_parameters(hf, layout, stage)):
        if layout.distributed_optimizer:
            elements, mine = _sharded(parameters, layout, stage, number, data_rank)
        else:
            elements = mine = sum(parameter.numel for parameter in parameters)
        weights += width * elements
        gradients += 4 * elements
        optimizer += per_parameter * mine
    return StateBytes(weights, gradients, optimizer)


def _sharded(parameters: list[Parameter], layout: Layout, stage: int, chunk: int, data_rank: int) -> tuple[int, int]:
    """(elements of the distributed optimizer's buffer, padding included; elements whose states this rank has)."""
    ranks = layout.gradient_ranks
    # Megatron cuts the buffer into buckets where gradients are reduced early: the first stage's first chunk.
    limit = max(40_000_000, 1_000_000 * ranks) if layout.overlap and stage == 0 and chunk == 0 else None
    end_alignment = math.lcm(ranks, BUCKET_ALIGNMENT)
    buckets: list[tuple[int, int, list[tuple[int, int]]]] = []
    start, position = 0, 0
    places: list[tuple[int, int]] = []

    def close() -> None:
        nonlocal start, position, places
        position = _up(position, end_alignment)
        buckets.append((start, position, places))
        start, places = position, []

    for parameter in reversed(parameters):
        position = _up(position, PARAMETER_ALIGNMENT)
        if parameter.shared and places:
            close()
        places.append((position, position + parameter.numel))
        position += parameter.numel
        if parameter.shared or (limit is not None and position - start >= limit):
            close()
    if places:
        close()
    mine = 0
    for first, last, inside in buckets:
        share = (last - first) // ranks
        low, high = first + data_rank * share, first + (data_rank + 1) * share
        mine += sum(max(0, min(high, end) - max(low, begin)) for begin, end in inside)
    return position, mine


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
