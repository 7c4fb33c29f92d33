"""Process groups as a value that is passed around."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from aapa.engine.policy import compatibility


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands. A replica is the set of ranks that together hold one copy of the policy.

    Attributes:
        tensor, pipeline, data: sizes of tensor, pipeline and data parallelism.
        tensor_rank, pipeline_rank, data_rank: this rank's place in each.
        tensor_group, pipeline_group, data_group, replica_group: process groups; replica = tensor x pipeline.
        device: of this rank's tensors.
    """

    tensor: int
    pipeline: int
    data: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    data_group: dist.ProcessGroup
    replica_group: dist.ProcessGroup
    device: torch.device

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def is_main(self) -> bool:
        """The one rank that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def is_leader(self) -> bool:
        """The first rank of its replica: it generates rollouts and computes rewards."""
        return self.tensor_rank == 0 and self.pipeline_rank == 0

    @property
    def first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline - 1

    @property
    def split_group(self) -> dist.ProcessGroup | None:
        """The tensor-parallel group as kernels take it: None where nothing is split."""
        return self.tensor_group if self.tensor > 1 else None

    def from_leader(self, value: Any) -> Any:
        """The leader's Python object, on every rank of the replica."""
        if self.tensor * self.pipeline == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.replica_group, 0), group=self.replica_group)
        return box[0]

    def from_main(self, value: Any) -> Any:
        """Rank 0's Python object, on every rank."""
        if dist.get_world_size() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_last_stage(self, value: Tensor) -> Tensor:
        """The last stage's tensor on every stage, in place; shapes must agree beforehand."""
        if self.pipeline > 1:
            source = dist.get_global_rank(self.pipeline_group, self.pipeline - 1)
            dist.broadcast(value, src=source, group=self.pipeline_group)
        return value

    def sum_over_data(self, value: Tensor) -> Tensor:
        """In place sum over data-parallel ranks."""
        if self.data > 1:
            dist.all_reduce(value, group=self.data_group)
        return value

    def gather_over_data(self, value: Any) -> list[Any]:
        """One Python object of each replica, in the order of data ranks."""
        if self.data == 1:
            return [value]
        parts: list[Any] = [None] * self.data
        dist.all_gather_object(parts, value, group=self.data_group)
        return parts

    def barrier(self) -> None:
        dist.barrier()


def start(tensor: int = 1, pipeline: int = 1, timeout_seconds: float = 600.0) -> Parallel:
    """Join the job that torchrun started (or a job of one process) and cut it into groups.

    Raises:
        ValueError: the number of processes is no multiple of tensor x pipeline.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % (tensor * pipeline):
        raise ValueError(
            f"parallel: expected the number of processes to be a multiple of tensor x pipeline = "
            f"{tensor} x {pipeline}, got {world}; start with torchrun --nproc-per-node {tensor * pipeline}"
        )
    compatibility.install()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _init_process_group("nccl" if on_gpu else "gloo", timeout_seconds)
    parallel_state.initialize_model_parallel(tensor, pipeline)
    # Dropout is off everywhere, so these states decide nothing; Megatron requires them to exist.
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    return Parallel(
        tensor=tensor,
        pipeline=pipeline,
        data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        data_group=parallel_state.get_data_parallel_group(),
        replica_group=parallel_state.get_model_parallel_group(),
        device=device,
    )


def _init_process_group(backend: str, timeout_seconds: float) -> None:
    timeout = timedelta(seconds=timeout_seconds)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
        return
    # One process without torchrun: no port is opened.
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def stop() -> None:
    """Leave the groups, so that a process can start again."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
