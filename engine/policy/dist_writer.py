"""Writes checkpoints in the format of `megatron.core.dist_checkpointing` (torch's distributed format), shard by shard.

`dist_checkpointing.save` starts a process that imports the main module again, so that a script without an
`if __name__ == "__main__"` cannot save, and forks a process for each file. Here torch's own writer is given the same
plan; what it writes `dist_checkpointing.load` reads, which a test does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

COMMON = "common.pt"


@dataclass(frozen=True)
class Box:
    """A part of a global tensor.

    Attributes:
        value: of as many axes as the global tensor.
    """

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    value: Tensor


class _BoxPlanner(SavePlanner):
    """Every rank writes its boxes, as they are."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        self.boxes = {_index(box): box for box in boxes}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_item(index, box) for index, box in self.boxes.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, index = create_default_global_save_plan(all_plans)
        _check_cover(all_plans)
        return plans, index

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        index = write_item.index
        return self.boxes[MetadataIndex(index.fqn, index.offset)].value


def _index(box: Box) -> MetadataIndex:
    return MetadataIndex(box.key, torch.Size(box.offsets))


def _item(index: MetadataIndex, box: Box) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(box.offsets), box.value.shape)
    data = TensorWriteData(chunk, TensorProperties.create_from_tensor(box.value), torch.Size(box.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


def _check_cover(plans: Sequence[SavePlan]) -> None:
    """Boxes of a tensor are equal parts, so it is whole where there are enough of them at places of their own."""
    left: dict[str, int] = {}
    seen: set[MetadataIndex] = set()
    for item in (item for plan in plans for item in plan.items):
        assert item.tensor_data is not None
        assert item.index not in seen, f"{item.index.fqn} at {item.index.offset} is written twice"
        seen.add(MetadataIndex(item.index.fqn, item.index.offset))
        left.setdefault(item.index.fqn, item.tensor_data.size.numel())
        left[item.index.fqn] -= item.tensor_data.chunk.sizes.numel()
    assert not any(left.values()), f"parts are missing: {[key for key, count in left.items() if count]}"


def write_boxes(directory: Path, boxes: Sequence[Box]) -> None:
    """Write global tensors into an empty directory that all ranks see; a collective, each rank brings its boxes."""
    if dist.get_rank() == 0:
        torch.save({}, directory / COMMON)
        save_config(CheckpointingConfig("torch_dist"), str(directory))
    # Returns when all ranks have written.
    dcp.save({}, storage_writer=dcp.FileSystemWriter(directory, sync_files=False), planner=_BoxPlanner(boxes))
