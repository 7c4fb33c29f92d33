"""Reads checkpoints of `megatron.core.dist_checkpointing` (torch's distributed format) without running what is in them.

The format keeps its index in `.metadata`, a pickle that torch loads without any restriction: a call planted in it is
made. Here only the classes that an index consists of can be named in it. Tensors lie in `*.distcp` files, which are
read with `weights_only=True`; other objects are never read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata

from aapa.engine.errors import UserError

INDEX = ".metadata"
# Everything that an index of tensors consists of; none of them does anything when it is called.
_ALLOWED = {
    "torch": {"Size", "device", "strided"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath"},
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}, which no index has")
        return super().find_class(module, name)


class DistReader:
    """Tensors of a checkpoint directory, by key and slice.

    Attributes:
        shapes: global shape of every tensor.
        types: its type.
        objects: keys of what is not a tensor.

    Raises:
        UserError: no index, one that names anything but an index's classes, or one that leads out of the directory.
    """

    def __init__(self, directory: Path, field: str) -> None:
        self.directory, self.field = directory, field
        index = self._index()
        self._tensors: Mapping[str, TensorStorageMetadata] = {
            key: value for key, value in index.state_dict_metadata.items() if isinstance(value, TensorStorageMetadata)
        }
        self.objects = [k for k, v in index.state_dict_metadata.items() if isinstance(v, BytesStorageMetadata)]
        self._places: Mapping[MetadataIndex, Any] = index.storage_data
        for place in self._places.values():
            if Path(place.relative_path).name != place.relative_path or getattr(place, "transform_descriptors", None):
                raise UserError(f"{field}: expected plain files in {directory}, got {place.relative_path!r}")
        self.shapes = {key: tuple(value.size) for key, value in self._tensors.items()}
        self.types = {key: value.properties.dtype for key, value in self._tensors.items()}

    def _index(self) -> Any:
        file = self.directory / INDEX
        try:
            with file.open("rb") as stream:
                index = _IndexUnpickler(stream).load()
            assert index.storage_data is not None
            assert isinstance(index.state_dict_metadata, dict)
        except (
            OSError,
            EOFError,
            pickle.UnpicklingError,
            AttributeError,
            ValueError,
            TypeError,
            AssertionError,
        ) as why:
            raise UserError(
                f"{self.field}: expected a checkpoint of megatron.core.dist_checkpointing with a readable index, got "
                f"{file}: {why or type(why).__name__}"
            ) from None
        return index

    def read(self, key: str, offsets: tuple[int, ...], target: Tensor) -> None:
        """Fill `target` with the slice of a global tensor that begins at `offsets`.

        Raises:
            UserError: a part of it is in no file, or in one that cannot be read.
        """
        covered = 0
        for chunk in self._tensors[key].chunks:
            box = _overlap(tuple(chunk.offsets), tuple(chunk.sizes), offsets, tuple(target.shape))
            if box is None:
                continue
            stored = self._chunk(key, chunk)
            for axis, (start, stop) in enumerate(box):
                stored = stored.narrow(axis, start - chunk.offsets[axis], stop - start)
            place = target
            for axis, (start, stop) in enumerate(box):
                place = place.narrow(axis, start - offsets[axis], stop - start)
            place.copy_(stored)
            covered += place.numel()
        if covered != target.numel():
            wanted = f"{target.numel()} numbers of {key!r} from {offsets} on"
            raise UserError(f"{self.field}: expected {wanted} in the files of {self.directory}, got {covered}")

    def _chunk(self, key: str, chunk: Any) -> Tensor:
        place = self._places.get(MetadataIndex(key, chunk.offsets))
        if place is None:
            where = f"{key!r} at {tuple(chunk.offsets)}"
            raise UserError(f"{self.field}: expected a place for {where} in {self.directory / INDEX}, got none")
        file = self.directory / place.relative_path
        try:
            with file.open("rb") as stream:
                stored = torch.load(_part(stream, place.offset, place.length), map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{self.field}: expected a readable tensor {key!r} in {file}, got: {first[0]}") from None
        if not isinstance(stored, Tensor) or stored.shape != chunk.sizes:
            got = tuple(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
            raise UserError(f"{self.field}: expected {key!r} of shape {tuple(chunk.sizes)} in {file}, got {got}")
        return stored


def _part(stream: IO[bytes], offset: int, length: int) -> io.BytesIO:
    stream.seek(offset)
    return io.BytesIO(stream.read(length))


def _overlap(
    start: tuple[int, ...], size: tuple[int, ...], other: tuple[int, ...], other_size: tuple[int, ...]
) -> list[tuple[int, int]] | None:
    """Bounds of what two boxes share, by axis; None where they share nothing."""
    box = []
    for a, n, b, m in zip(start, size, other, other_size, strict=True):
        low, high = max(a, b), min(a + n, b + m)
        if low >= high:
            return None
        box.append((low, high))
    return box
