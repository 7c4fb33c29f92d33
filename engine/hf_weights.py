"""Safetensors files of a Hugging Face directory: read with every tensor accounted for, and written in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aapa.engine.errors import UserError
from aapa.engine.policy.names import EMBEDDING, HEAD, problem_text, tensor_problems, without_copies

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Types of safetensors headers that hold plain numbers; what is quantized comes as integers or 8-bit floats.
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Header:
    """What a file's header says of a tensor."""

    file: Path
    shape: tuple[int, ...]
    type: str


class SafetensorsWeights(Mapping[str, "Tensor"]):
    """Tensors of a directory's safetensors files by name, read when asked for.

    With a configuration the files are checked against it, from their headers alone: every tensor there, none unknown,
    none of another shape or of a type that holds no plain floating-point numbers. Copies (see `without_copies`) are
    left out.

    Raises:
        UserError: no safetensors files, files that disagree with their index, or tensors that do not fit; by file. When
            a tensor is read: values that are not finite.
    """

    def __init__(self, directory: Path, field: str = "model.source", config: PretrainedConfig | None = None) -> None:
        self.directory, self._field = directory, field
        self._headers = _headers(directory, field)
        if config is not None:
            self._check(config)
            self._headers = {name: self._headers[name] for name in sorted(without_copies(self._headers, config))}

    def __getitem__(self, name: str) -> Tensor:
        path = self._headers[name].file
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        if not tensor.isfinite().all():
            raise UserError(f"{self._field}: expected finite numbers in {name!r} of {path}, got NaN or infinite ones")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: header.shape for name, header in self._headers.items()}

    def types(self) -> dict[str, torch.dtype]:
        """The type that each tensor has on disk."""
        import torch

        return {name: getattr(torch, TYPES[header.type]) for name, header in self._headers.items()}

    def _check(self, config: PretrainedConfig) -> None:
        files = {header.file.name for header in self._headers.values()}
        only = f" in {files.pop()}" if len(files) == 1 else f" in the {len(files)} shards"

        def where(name: str) -> str:
            return f" in {self._headers[name].file.name}" if name in self._headers else only

        problems = tensor_problems(config, self.shapes(), where)
        for name, header in self._headers.items():
            if header.type not in TYPES:
                advice = "quantized weights cannot be trained; take the checkpoint before quantization"
                known = ", ".join(TYPES)
                problems.append(f"expected {name!r}{where(name)} of type {known}, got {header.type}; {advice}")
        if not problems and config.tie_word_embeddings and HEAD in self._headers:
            import torch

            if not torch.equal(self[HEAD], self[EMBEDDING]):
                problems.append(
                    f"expected {HEAD!r}{where(HEAD)} to equal {EMBEDDING!r}, for tie_word_embeddings is true, got "
                    "other numbers; set it to false in config.json, or remove the tensor"
                )
        if problems:
            raise UserError(problem_text(f"{self._field}: {self.directory}", problems))


def _headers(directory: Path, field: str) -> dict[str, Header]:
    """Headers of all tensors of a directory, in the order of transformers: a single file, else an index of shards."""
    if (directory / SINGLE).is_file():
        return _file_headers(directory / SINGLE, field)
    index = directory / INDEX
    if not index.is_file():
        raise UserError(f"{field}: expected {SINGLE} or {INDEX} in {directory}, got neither{_instead(directory)}")
    places = _index(index, field)
    found: dict[str, Header] = {}
    for file in sorted(set(places.values())):
        path = directory / file
        if Path(file).name != file or not path.is_file():
            raise UserError(f"{field}: expected the shards that {index} names, got no file {file!r}; copy it, too")
        for name, header in _file_headers(path, field).items():
            if places.get(name) != file:
                listed = repr(places[name]) if name in places else "none"
                raise UserError(f"{field}: expected {index} to list {name!r} under {file!r}, got {listed}")
            found[name] = header
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise UserError(
            f"{field}: expected a tensor {missing[0]!r} in {directory / places[missing[0]]}, as {INDEX} says, got none"
        )
    return found


def _index(file: Path, field: str) -> dict[str, str]:
    try:
        places: Any = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{field}: expected a readable index in {file}, got {error!r}") from None
    if not isinstance(places, dict) or not all(isinstance(value, str) for value in places.values()):
        raise UserError(f"{field}: expected weight_map in {file} to name a file for each tensor, got other values")
    return places


def _file_headers(path: Path, field: str) -> dict[str, Header]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Header(path, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{field}: expected a readable safetensors file, got {path}: {error}; fetch it again") from None


def _instead(directory: Path) -> str:
    """What lies there that one may have taken for weights, and what to do about it."""
    names = sorted(file.name for file in directory.iterdir()) if directory.is_dir() else []
    for name in names:
        if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
            return (
                f" but {name}, a pickle, which can run code and is never opened; where you trust it, convert it once "
                "with AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
            )
        if name.endswith(".gguf"):
            return f" but {name}; take the checkpoint that it was converted from"
        if name == "adapter_model.safetensors":
            return f" but {name}; merge the adapter into its base model first (peft's merge_and_unload)"
        if name.endswith(".safetensors"):
            return f" but {name}; rename a single file to {SINGLE}, and give shards their {INDEX}"
    return ""


class ShardWriter:
    """Writes a stream of tensors into shards of bounded size; no more than one shard is held in memory.

    A model that fits into one shard becomes `model.safetensors`; else an index goes beside the shards. A tensor larger
    than a shard has one of its own.
    """

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory, self.shard_bytes = directory, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = self._total = 0
        self._written: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        # A copy: tensors of a stream may be views of parameters or share memory.
        self._pending[name] = tensor.detach().cpu().contiguous().clone()
        self._pending_bytes += size
        self._total += size

    def _flush(self) -> None:
        save_file(self._pending, self._part(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number}.safetensors"

    def close(self) -> None:
        """Write the rest, and give the files their names, which say how many there are."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._part(0).rename(self.directory / SINGLE)
            return
        places: dict[str, str] = {}
        for number, names in enumerate(self._written):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self.directory / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
