"""The policy: a Megatron-core GPT, driven through its schedule, DDP and `finalize_model_grads` at every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch import Tensor
from transformers import PretrainedConfig

from aapa.batch import TokenBatch
from aapa.engine.policy.dist_reader import DistReader
from aapa.engine.policy.head import head_loss
from aapa.engine.policy.model import PolicyModel, build_chunks
from aapa.engine.policy.offload import Offload
from aapa.engine.policy.optimizer import Adam, AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.schedule import head_outputs, run_schedule
from aapa.engine.policy.settings import TrainSettings
from aapa.engine.policy.shard import Shard
from aapa.engine.policy.sharded import read_model, read_optimizer, write_model
from aapa.engine.policy.stream import load, stream
from aapa.objectives.base import Objective


@dataclass(frozen=True)
class UpdateResult:
    """Figures of one optimizer step, equal on all ranks.

    Attributes:
        sums: sums over the global batch by the names of `policy_loss` (maxima for "max/…").
        grad_norm: global gradient norm before clipping.
    """

    sums: dict[str, float]
    grad_norm: float


class MegatronPolicy:
    """One copy of the policy per replica, sharded over its ranks.

    Every method is a collective over the replica; `train_step` also over all replicas, and so are the streams where
    the distributed optimizer splits what they carry.

    Attributes:
        chunks: this rank's model chunks; one, but for interleaved pipelines.
    """

    def __init__(
        self, hf: PretrainedConfig, parallel: Parallel, dtype: torch.dtype, settings: TrainSettings | None = None
    ) -> None:
        settings = settings or TrainSettings()
        self.hf, self.parallel, self.dtype, self.settings = hf, parallel, dtype, settings
        self.chunks = [chunk.to(parallel.device) for chunk in build_chunks(hf, parallel, dtype, settings)]
        config = self.chunks[0].config
        ddp = DistributedDataParallelConfig(
            # float64 is for tests, which compare gradients to 1e-10; everything else accumulates in float32.
            grad_reduce_in_fp32=dtype != torch.float64,
            overlap_grad_reduce=settings.overlap,
            use_distributed_optimizer=settings.distributed_optimizer,
            overlap_param_gather=settings.overlap and settings.distributed_optimizer,
            bucket_size=settings.bucket_parameters,
        )
        # Only the first chunk's communication is on the way of the first forward pass; others take a bucket each.
        self.ddp = [
            DistributedDataParallel(config, ddp, chunk, disable_bucketing=place > 0)
            for place, chunk in enumerate(self.chunks)
        ]
        if settings.overlap:
            waits = [part.no_sync for part in self.ddp]
            config.no_sync_func = waits if parallel.virtual > 1 else waits[0]
        self.optimizer: Adam | None = None
        self._offload = Offload(list)

    @property
    def model(self) -> PolicyModel:
        """The only chunk of a pipeline that is not interleaved."""
        (only,) = self.chunks
        return only

    def start_stage(self, settings: AdamSettings) -> None:
        """A fresh optimizer."""
        self.wake()
        self.optimizer = None
        self.optimizer = Adam(self.ddp, settings, self.dtype, self.parallel, self.settings)
        self._offload = Offload(self.optimizer.tensors)
        self.rest()

    def train_step(self, batches: list[TokenBatch], objective: Objective, learning_rate: float) -> UpdateResult:
        """One optimizer step on this replica's micro-batches of the global batch."""
        assert self.optimizer is not None, "start_stage comes before train_step"
        sums = self.gradients(batches, objective, everywhere=False)
        return UpdateResult(sums, self.optimizer.step(learning_rate))

    def gradients(self, batches: list[TokenBatch], objective: Objective, everywhere: bool = True) -> dict[str, float]:
        """Leave the gradient of the global loss in `main_grad` of every parameter; return the global metric sums.

        Args:
            everywhere: on every rank that holds the parameter, also where the distributed optimizer needs it on one.
        """
        self.wake()
        for part in self.ddp:
            part.train()
            part.zero_grad_buffer()
            part.force_all_reduce = everywhere

        def loss_of(place: int, shard: Shard) -> Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]:
            def loss(hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                value, metrics = head_loss(hidden[:, 0], self.head_weight(), shard, objective, self.hf.vocab_size)
                # A count of zero tells Megatron to divide by nothing: the weights hold every denominator (4.1).
                return value, torch.zeros((), dtype=torch.int, device=value.device), metrics

            return loss

        outputs = run_schedule(self.ddp, batches, self.parallel, loss_of, forward_only=False, everywhere=everywhere)
        return self._global_sums(outputs)

    def rest(self) -> None:
        """Until the next update: with `offload`, optimizer states move to the host, and gradients are dropped."""
        if self.parallel.offload:
            self._offload.out()
            for part in self.ddp:
                for buffer in part.buffers:
                    buffer.offload_to_cpu(move_params=False, move_grads=True)

    def wake(self) -> None:
        """Undo `rest`; every method that needs to does so by itself."""
        self._offload.back()
        for part in self.ddp:
            for buffer in part.buffers:
                buffer.reload_from_cpu(move_params=False, move_grads=True)

    @torch.no_grad()
    def logprobs(self, batches: list[TokenBatch], entropy: bool = False) -> list[tuple[Tensor, Tensor | None]]:
        """Per batch ([T] log-probs of the targets, [T] entropies or None), on every rank of the replica."""
        for part in self.ddp:
            part.eval()
        return head_outputs(self.ddp, self.head_weight, batches, self.parallel, self.hf.vocab_size, entropy)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The stream of (Hugging Face name, whole tensor)."""
        self.finish_gather()
        return stream(self.chunks, self.hf, self.parallel)

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        load(self.chunks, self.hf, self.parallel, weights, source=source)
        if self.optimizer is not None:
            self.wake()
            self.optimizer.reload()

    def moments(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What the optimizer keeps (one of its `names`) under the Hugging Face names of the parameters."""
        optimizer = self.optimizer
        assert optimizer is not None and name in optimizer.names
        self.wake()
        return stream(self.chunks, self.hf, self.parallel, lambda parameter: optimizer.whole_moment(parameter, name))

    def save(self, directory: Path, optimizer: bool) -> None:
        """Write weights, and what the optimizer keeps, into an empty directory that all ranks see, each rank its parts.

        A collective over all ranks.
        """
        self.finish_gather()
        if optimizer:
            assert self.optimizer is not None
            self.wake()
        write_model(directory, self.chunks, self.hf, self.parallel, self.optimizer if optimizer else None)

    def load(self, directory: Path) -> None:
        """Take over the weights that `save` wrote, at whatever layout.

        Raises:
            UserError: tensors that are missing, unknown or of another shape, by name.
        """
        read_model(DistReader(directory, "checkpoint"), self.chunks, self.hf, self.parallel)
        if self.optimizer is not None:
            self.wake()
            self.optimizer.reload()

    def load_optimizer(self, directory: Path) -> None:
        """Take over what the optimizer kept, likewise."""
        assert self.optimizer is not None
        self.wake()
        read_optimizer(DistReader(directory, "checkpoint"), self.chunks, self.optimizer, self.hf, self.parallel)

    def finish_gather(self) -> None:
        """Have all weights after an update, where they are otherwise gathered during the next forward pass."""
        if not (self.settings.overlap and self.settings.distributed_optimizer):
            return
        for part in self.ddp:
            for group in part.bucket_groups:
                if group.param_gather_handle is not None or not group.param_gather_dispatched:
                    group.start_param_sync(force_sync=True)

    def head_weight(self) -> Tensor:
        """The LM head's rows, on the last stage. Reading them bypasses the hook that waits for gathered weights."""
        weight_VD = self.chunks[-1].head_weight()
        if self.settings.overlap and self.settings.distributed_optimizer:
            self.ddp[-1].param_to_bucket_group[weight_VD].finish_param_sync()
        return weight_VD

    def _global_sums(self, outputs: list[dict[str, Tensor]]) -> dict[str, float]:
        """Sums of the micro-batches' metrics over tokens, stages (the last has them) and replicas, in a fixed order."""
        local = _combined(self.parallel.gather_over_context(_combined(outputs)))
        if self.parallel.pipeline > 1:
            last = torch.distributed.get_global_rank(self.parallel.pipeline_group, self.parallel.pipeline - 1)
            box: list[Any] = [local]
            torch.distributed.broadcast_object_list(box, src=last, group=self.parallel.pipeline_group)
            local = box[0]
        return _combined(self.parallel.gather_over_data(local))


def _combined(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sums by name, maxima for "max/…"; tensors are added as tensors."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            known = total.get(name)
            if known is None:
                total[name] = value
            elif not name.startswith("max/"):
                total[name] = known + value
            else:
                # Unlike Python's, torch's maximum keeps a NaN.
                both = (torch.as_tensor(item, dtype=torch.float64) for item in (known, value))
                total[name] = torch.maximum(*both)
    return {name: float(value) for name, value in total.items()}
