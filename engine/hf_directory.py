"""Hugging Face directories: where a policy is read from and written to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from aapa.engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


class SafetensorsWeights(Mapping[str, "Tensor"]):
    """Tensors of a directory's safetensors files by name, read when asked for."""

    def __init__(self, directory: Path, field: str = "model.source") -> None:
        index = directory / "model.safetensors.index.json"
        if index.exists():
            files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        else:
            files = dict.fromkeys(_names(directory / "model.safetensors", field), "model.safetensors")
        self._files = {name: directory / file for name, file in files.items()}

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _names(file: Path, field: str) -> list[str]:
    if not file.is_file():
        raise UserError(f"{field}: expected {file.name} or an index of shards in {file.parent}, got neither")
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise UserError(f"{field}: expected a readable safetensors file, got {file}: {error}") from None


def read_config(directory: Path, field: str = "model.source") -> PretrainedConfig:
    """The model configuration of a directory.

    Raises:
        UserError: no directory, or no config.json in it.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{field}: expected a Hugging Face directory with config.json, got {str(directory)!r}")
    return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def write_directory(
    directory: Path,
    config: PretrainedConfig,
    weights: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerFast | None,
    write: bool = True,
) -> None:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    The weights may be a collective stream: every rank passes it in, and only the one with `write` keeps it. The
    directory appears whole or not at all.
    """
    if not write:
        for _ in weights:
            pass
        return
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
    staging = directory.with_name(f".{directory.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
    config = config.__class__.from_dict(config.to_dict())
    config.architectures = config.architectures or [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(staging)
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
        GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
        ).save_pretrained(staging)
    replace_directory(staging, directory)


def replace_directory(staging: Path, directory: Path) -> None:
    """Put a finished directory in its place; an older one of that name goes."""
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
        os.rename(staging, directory)
        shutil.rmtree(old)
    else:
        os.rename(staging, directory)
