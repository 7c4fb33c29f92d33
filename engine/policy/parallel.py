"""Process groups as a value that is passed around."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from aapa.engine.errors import UserError
from aapa.engine.policy import compatibility


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands. A replica is the set of ranks that work on the same sequences.

    Attributes:
        tensor, pipeline, data: sizes of tensor, pipeline and data parallelism.
        tensor_rank, pipeline_rank, data_rank: this rank's place in each.
        tensor_group, pipeline_group, data_group, replica_group: process groups; replica = tensor x context x pipeline.
        device: of this rank's tensors.
        context, context_rank, context_group: context parallelism, which splits the tokens of a micro-batch over ranks
            that each hold the weights of their tensor and pipeline rank.
        gradient_group: ranks with the same weights, over which gradients are summed; data x context.
        sequence: whether norms and residuals are split by tokens over the tensor-parallel ranks.
        virtual: model chunks per pipeline stage (interleaved schedule).
        offload: whether frozen models and optimizer states wait in the host's memory while they are not needed.
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
    context: int
    context_rank: int
    context_group: dist.ProcessGroup
    gradient_group: dist.ProcessGroup
    sequence: bool = False
    virtual: int = 1
    offload: bool = False

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
        return self.tensor_rank == 0 and self.pipeline_rank == 0 and self.context_rank == 0

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

    @property
    def replica(self) -> int:
        """Ranks of a replica."""
        return self.tensor * self.context * self.pipeline

    def from_leader(self, value: Any) -> Any:
        """The leader's Python object, on every rank of the replica."""
        if self.replica == 1:
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
        return _gather_objects(value, self.data, self.data_group)

    def gather_over_context(self, value: Any) -> list[Any]:
        """One Python object of each context-parallel rank, in their order."""
        return _gather_objects(value, self.context, self.context_group)

    def barrier(self) -> None:
        dist.barrier()


def _gather_objects(value: Any, size: int, group: dist.ProcessGroup) -> list[Any]:
    if size == 1:
        return [value]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, value, group=group)
    return parts


def start(
    tensor: int = 1,
    pipeline: int = 1,
    timeout_seconds: float = 600.0,
    *,
    context: int = 1,
    sequence: bool = False,
    virtual: int = 1,
    offload: bool = False,
) -> Parallel:
    """Join the job that torchrun started (or a job of one process) and cut it into groups.

    Raises:
        ValueError: the number of processes is no multiple of tensor x context x pipeline, or a layout that splits
            nothing.
        UserError: there is no network interface that gloo can use.
    """
    _check(tensor, pipeline, context, sequence, virtual)
    compatibility.install()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _init_process_group("nccl" if on_gpu else "gloo", timeout_seconds)
    parallel_state.initialize_model_parallel(
        tensor,
        pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=context,
    )
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
        replica_group=_replica_group(tensor, pipeline, context),
        device=device,
        context=context,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_group=parallel_state.get_context_parallel_group(),
        gradient_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        sequence=sequence,
        virtual=virtual,
        offload=offload,
    )


def _check(tensor: int, pipeline: int, context: int, sequence: bool, virtual: int) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    replica = tensor * context * pipeline
    if world % replica:
        sizes, names = f"{tensor} x {pipeline}", "tensor x pipeline"
        if context > 1:
            sizes, names = f"{tensor} x {context} x {pipeline}", "tensor x context x pipeline"
        raise ValueError(
            f"parallel: expected the number of processes to be a multiple of {names} = "
            f"{sizes}, got {world}; start with torchrun --nproc-per-node {replica}"
        )
    if sequence and tensor == 1:
        raise ValueError("parallel.sequence: expected false with tensor = 1, where nothing is split, got true")
    if virtual > 1 and pipeline == 1:
        raise ValueError(f"parallel.virtual: expected 1 with pipeline = 1, where nothing waits, got {virtual}")


def _replica_group(tensor: int, pipeline: int, context: int) -> dist.ProcessGroup:
    """Megatron has a group of tensor x pipeline; with context parallelism a replica has more ranks."""
    if context == 1:
        return parallel_state.get_model_parallel_group()
    # Megatron's order of ranks, from the fastest: tensor, context, data, pipeline.
    ranks = torch.arange(dist.get_world_size()).view(pipeline, -1, context, tensor)
    groups = [dist.new_group(ranks[:, replica].flatten().tolist()) for replica in range(ranks.shape[1])]
    mine = (ranks == dist.get_rank()).nonzero()[0, 1]
    return groups[int(mine)]


def _init_process_group(backend: str, timeout_seconds: float) -> None:
    alone: dict[str, Any] = {}
    if "RANK" not in os.environ:
        # One process without torchrun: no port is opened.
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds), **alone)
    except RuntimeError as error:
        # gloo binds an address even where there is nobody to talk to, and has no error of its own for finding none.
        if not re.search("Unable to find (interface|address) for", str(error)):
            raise
        name = os.environ.get("GLOO_SOCKET_IFNAME")
        if name:
            text = f"GLOO_SOCKET_IFNAME: expected a network interface with an address, got {name!r}"
        else:
            text = "network: expected a loopback interface, which gloo needs, got none; 'ip link set lo up' starts it"
        raise UserError(text) from error


def stop() -> None:
    """Leave the groups, so that a process can start again."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
