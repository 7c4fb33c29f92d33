"""Hugging Face directories: where a policy is read from and written to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig

from aapa.engine.errors import UserError
from aapa.engine.hf_weights import SHARD_BYTES, SafetensorsWeights, ShardWriter
from aapa.engine.hub import TRAVELLING
from aapa.engine.policy.families import config_problems
from aapa.engine.policy.names import problem_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

__all__ = ["Origin", "SafetensorsWeights", "read_config", "read_tokenizer", "replace_directory", "write_directory"]

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class Origin:
    """The directory that a policy began from: its config.json and files travel to every directory written of it.

    Attributes:
        files: their contents by relative path, read at the start: a run may outlast the directory.
        types: type on disk of each tensor, by name.
    """

    directory: Path
    files: Mapping[str, bytes]
    types: Mapping[str, torch.dtype]

    @staticmethod
    def of(weights: SafetensorsWeights) -> Origin:
        directory = weights.directory
        found = [file for pattern in TRAVELLING for file in sorted(directory.glob(pattern)) if file.is_file()]
        files = {file.relative_to(directory).as_posix(): file.read_bytes() for file in found}
        return Origin(directory, files, weights.types())

    def ending_with(self, token: str, number: int) -> Origin:
        """The same with another end of sequence, for whoever samples from a policy that was trained to write it."""
        files = dict(self.files)
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if name in files:
                files[name] = _json_bytes(json.loads(files[name]) | {"eos_token": token})
        settings = json.loads(files.get(GENERATION_FILE, b"{}"))
        before = settings.get("eos_token_id")
        others = before if isinstance(before, list) else [before]
        ends = [number, *(other for other in others if other not in (None, number))]
        files[GENERATION_FILE] = _json_bytes(settings | {"eos_token_id": ends})
        return replace(self, files=files)


def _json_bytes(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def read_config(directory: Path, field: str = "model.source") -> PretrainedConfig:
    """The model configuration of a directory.

    Raises:
        UserError: no directory, no config.json in it, unreadable settings, or a model that is not computed exactly.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{field}: expected a Hugging Face directory with config.json, got {str(directory)!r}")
    problems = config_problems(read_json(file, field))
    if problems:
        raise UserError(problem_text(f"{field}: {file}", problems))
    if (directory / GENERATION_FILE).is_file():
        read_json(directory / GENERATION_FILE, field)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{field}: expected a configuration that transformers reads in {file}, got {why}") from None


def read_json(file: Path, field: str) -> dict[str, Any]:
    """A JSON object; UserError where the file holds none."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: expected JSON in {file}, got {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{field}: expected a table in {file}, got {type(table).__name__}")
    return table


def read_tokenizer(directory: Path, config: PretrainedConfig, field: str = "model.source") -> PreTrainedTokenizerFast:
    """The tokenizer of a directory.

    Raises:
        UserError: none, or one with more tokens than the model has embeddings.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{field}: expected tokenizer files in {directory}, got none; save the model's tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"{field}: expected a tokenizer that transformers reads in {directory}, got {error}") from None
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{field}: expected at most vocab_size = {config.vocab_size} tokens in the tokenizer of {directory}, got "
            f"{len(tokenizer)}; tokens that were added need rows of the embedding (resize_token_embeddings)"
        )
    return tokenizer


def write_directory(
    directory: Path,
    config: PretrainedConfig,
    weights: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerFast | None,
    write: bool = True,
    origin: Origin | None = None,
    original_types: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    The weights may be a collective stream: every rank passes it in, and only the one with `write` keeps it. The
    directory appears whole or not at all.

    Args:
        origin: where the policy came from: its config.json, tokenizer, chat template and generation settings are
            copied byte by byte, but for the type of the weights. Without one they are written from `config` and
            `tokenizer`.
        original_types: give each tensor the type that it has in the origin, rather than the one that it has here.
        shard_bytes: most bytes of a file of weights.
    """
    if not write:
        for _ in weights:
            pass
        return
    staging = directory.with_name(f".{directory.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    writer = ShardWriter(staging, shard_bytes)
    dtypes = set()
    for name, tensor in weights:
        kept = tensor.to(origin.types[name]) if origin is not None and original_types else tensor
        dtypes.add(kept.dtype)
        writer.add(name, kept)
    writer.close()
    if origin is None:
        _write_own_files(staging, config, tokenizer, next(iter(dtypes)))
    else:
        _write_files(staging, origin, None if original_types else next(iter(dtypes)))
    replace_directory(staging, directory)


def _write_own_files(
    staging: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast | None, dtype: torch.dtype
) -> None:
    config = config.__class__.from_dict(config.to_dict())
    config.architectures = config.architectures or [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.dtype = dtype
    config.save_pretrained(staging)
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
        GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
        ).save_pretrained(staging)


def _write_files(staging: Path, origin: Origin, dtype: torch.dtype | None) -> None:
    """The origin's files; config.json names `dtype` instead, under the key that it has (older ones: torch_dtype)."""
    for name, content in origin.files.items():
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_bytes(content)
    if dtype is None:
        return
    table, name = json.loads(origin.files["config.json"]), str(dtype).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if key in table] or ["dtype"]
    if any(table.get(key) != name for key in keys):
        (staging / "config.json").write_text(json.dumps(table | dict.fromkeys(keys, name), indent=2) + "\n")


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
