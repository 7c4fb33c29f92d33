"""`aapa convert`: a model's weights between Hugging Face's format and Megatron's, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import aapa
from aapa.engine import manifest
from aapa.engine.console import announce
from aapa.engine.errors import UserError
from aapa.engine.hf_directory import Origin, SafetensorsWeights, read_config, write_directory
from aapa.engine.hub import TRAVELLING
from aapa.engine.policy.names import join, problem_text, split

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from aapa.engine.policy.dist_reader import DistReader
    from aapa.engine.policy.sharded import Shard

# Where configuration and tokenizer travel in a Megatron checkpoint.
FILES = "hf"


def convert(
    source: Path,
    target: Path,
    to: str,
    tensor: int = 1,
    pipeline: int = 1,
    config: Path | None = None,
    unverified: bool = False,
) -> None:
    """Convert a directory.

    Args:
        to: "megatron", for a checkpoint of `megatron.core.dist_checkpointing`, or "hf".
        tensor, pipeline: layout that Megatron's checkpoint is cut for; it can be read at any other.
        config: Hugging Face directory whose configuration and tokenizer belong to a Megatron checkpoint without them.
        unverified: read a Megatron checkpoint without a manifest.

    Raises:
        UserError: tensors that are missing, unknown or of another shape, by name; or a target that is there already.
    """
    if target.exists():
        raise UserError(f"DST: expected a path that does not exist yet, got {str(target)!r}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"convert: expected one process, got {os.environ['WORLD_SIZE']}")
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    if to == "megatron":
        count = to_megatron(source, target, tensor, pipeline)
    else:
        count = to_hugging_face(source, target, config, unverified)
    announce(f"{source} to {target}: {count} tensors, bit by bit")


def to_megatron(source: Path, target: Path, tensor: int, pipeline: int) -> int:
    """Write Hugging Face weights as a Megatron checkpoint; the number of tensors read."""
    hf = read_config(source, "SRC")
    weights = SafetensorsWeights(source, "SRC", config=hf)
    _check_layout(hf, tensor, pipeline)
    # Later, for it is Megatron that takes seconds to import.
    from aapa.engine.policy import parallel as groups
    from aapa.engine.policy.sharded import write

    staging = target.with_name(f".{target.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        groups.start()
        try:
            write(staging, _shards(weights, hf, tensor), hf)
        finally:
            groups.stop()
        _finish(staging, target, weights, {"tensor": tensor, "pipeline": pipeline})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(weights)


def _finish(staging: Path, target: Path, weights: SafetensorsWeights, layout: dict[str, int]) -> None:
    """Configuration and tokenizer beside the tensors, the manifest, and the place."""
    for name, content in Origin.of(weights).files.items():
        file = staging / FILES / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    facts = {
        "format": "megatron.core.dist_checkpointing",
        "aapa": aapa.__version__,
        "layout": layout,
    }
    manifest.commit(staging, target, facts)


def _check_layout(hf: PretrainedConfig, tensor: int, pipeline: int) -> None:
    sizes = {
        "num_attention_heads": ("--tp", tensor, hf.num_attention_heads),
        "num_key_value_heads": ("--tp", tensor, hf.num_key_value_heads),
        "intermediate_size": ("--tp", tensor, hf.intermediate_size),
        "num_hidden_layers": ("--pp", pipeline, hf.num_hidden_layers),
    }
    for name, (flag, ranks, size) in sizes.items():
        if ranks < 1 or size % ranks:
            raise UserError(f"{flag}: expected a divisor of {name}, {size}, got {ranks}")


def _shards(weights: SafetensorsWeights, hf: PretrainedConfig, tensor: int) -> Iterator[Shard]:
    """Parameters of all tensor-parallel ranks."""
    from aapa.engine.policy.sharded import Shard, global_key, model_parameters

    types: dict[str, torch.dtype] = {}
    for name, layer, item in model_parameters(hf):
        whole = {part: weights[part] for part in item.names}
        for part, value in whole.items():
            wanted = types.setdefault(global_key(name), value.dtype)
            if value.dtype != wanted:
                also = "as what Megatron keeps in the same tensor"
                raise UserError(f"SRC: expected {part!r} of type {wanted}, {also}, got {value.dtype}")
        for rank in range(1 if item.layout == "whole" else tensor):
            local = split(item, whole, hf, rank, tensor).contiguous().clone()
            yield Shard(name, layer, item, local, rank, tensor)


def to_hugging_face(source: Path, target: Path, config: Path | None, unverified: bool) -> int:
    """Write a Megatron checkpoint as a Hugging Face directory; the number of tensors written."""
    files = config or source / FILES
    if (source / manifest.MANIFEST).is_file():
        manifest.verify(source, "SRC")
    elif not unverified:
        raise UserError(
            f"SRC: expected {manifest.MANIFEST} in {source}, got none, so its files may have changed since they were "
            "written; with --unverified it is read all the same, and nothing in it is run"
        )
    if not (files / "config.json").is_file():
        raise UserError(f"--config: expected a Hugging Face directory with the model's config.json, got {str(files)!r}")
    hf = read_config(files, "--config" if config else "SRC")
    from aapa.engine.policy.dist_reader import DistReader
    from aapa.engine.policy.sharded import beside_weights, checkpoint_problems

    reader = DistReader(source, "SRC")
    problems = checkpoint_problems(reader, hf)
    if problems:
        raise UserError(problem_text(f"SRC: {source}", problems))
    left = sorted({key.split(".")[0] for key in reader.shapes if beside_weights(key)})
    if left:
        announce(f"left out, for it is no weight of the model: {', '.join(left)}")
    types = _types(reader, hf)
    travelling = {
        file.relative_to(files).as_posix(): file.read_bytes()
        for pattern in TRAVELLING
        for file in sorted(files.glob(pattern))
        if file.is_file()
    }
    origin = Origin(files, travelling, types)
    stated = json.loads(travelling["config.json"])
    # Where all tensors are of one type, config.json states that one.
    original = len(set(types.values())) > 1 and (stated.get("dtype") or stated.get("torch_dtype")) is not None
    write_directory(target, hf, _tensors(reader, hf), None, origin=origin, original_types=original)
    return len(types)


def _types(reader: DistReader, hf: PretrainedConfig) -> dict[str, torch.dtype]:
    from aapa.engine.policy.sharded import global_key, model_parameters

    return {part: reader.types[global_key(name)] for name, _, item in model_parameters(hf) for part in item.names}


def _tensors(reader: DistReader, hf: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """Whole Hugging Face tensors, read a parameter at a time."""
    from aapa.engine.policy.sharded import global_key, global_shapes, model_parameters, read_parameter

    shapes = global_shapes(hf)
    for name, layer, item in model_parameters(hf):
        key = global_key(name)
        shape = shapes[key] if layer is None else shapes[key][1:]
        local = torch.empty(shape, dtype=reader.types[key])
        read_parameter(reader, name, layer, item, local, hf, 0, 1)
        yield from join(item, [local], hf).items()
