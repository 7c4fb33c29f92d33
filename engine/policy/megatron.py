"""The policy: a Megatron-core GPT, driven through its schedule, DDP and `finalize_model_grads` at every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from transformers import PretrainedConfig

from aapa.batch import TokenBatch
from aapa.engine.policy.layers import PackedSeq
from aapa.engine.policy.model import PolicyModel, build_model
from aapa.engine.policy.optimizer import MOMENTS, Adam, AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.stream import load, stream
from aapa.kernels import linear_logprob, linear_policy_loss
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

    Every method is a collective over the replica; `train_step` also over all replicas.
    """

    def __init__(self, hf: PretrainedConfig, parallel: Parallel, dtype: torch.dtype) -> None:
        self.hf, self.parallel, self.dtype = hf, parallel, dtype
        self.model = build_model(hf, parallel, dtype).to(parallel.device)
        settings = DistributedDataParallelConfig(
            # float64 is for tests, which compare gradients to 1e-10; everything else accumulates in float32.
            grad_reduce_in_fp32=dtype != torch.float64,
            overlap_grad_reduce=False,
            use_distributed_optimizer=False,
        )
        self.ddp = DistributedDataParallel(self.model.config, settings, self.model)
        self.optimizer: Adam | None = None

    def start_stage(self, settings: AdamSettings) -> None:
        """A fresh optimizer."""
        self.optimizer = Adam(self.ddp, settings, self.dtype)

    def train_step(self, batches: list[TokenBatch], objective: Objective, learning_rate: float) -> UpdateResult:
        """One optimizer step on this replica's micro-batches of the global batch."""
        assert self.optimizer is not None, "start_stage comes before train_step"
        sums = self.gradients(batches, objective)
        return UpdateResult(sums, self.optimizer.step(learning_rate))

    def gradients(self, batches: list[TokenBatch], objective: Objective) -> dict[str, float]:
        """Leave the gradient of the global loss in `main_grad` of every parameter; return the global metric sums."""
        self.ddp.train()
        self.ddp.zero_grad_buffer()

        def loss_of(batch: TokenBatch) -> Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]:
            def loss(hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
                weight_VD = self.model.head_weight()
                fields, spec = objective.lower(batch)
                value, metrics = linear_policy_loss(
                    hidden[:, 0],
                    weight_VD,
                    fields,
                    spec,
                    main_grad=weight_VD.main_grad,
                    vocab_size=self.hf.vocab_size,
                    tp_group=self.parallel.split_group,
                )
                # A count of zero tells Megatron to divide by nothing: the weights hold every denominator (4.1).
                return value, torch.zeros((), dtype=torch.int, device=value.device), metrics

            return loss

        outputs = run_schedule(self.ddp, batches, self.parallel, loss_of, forward_only=False)
        return self._global_sums(outputs)

    @torch.no_grad()
    def logprobs(self, batches: list[TokenBatch], entropy: bool = False) -> list[tuple[Tensor, Tensor | None]]:
        """Per batch ([T] log-probs of the targets, [T] entropies or None), on every rank of the replica."""
        self.ddp.eval()
        return head_outputs(self.ddp, self.model, batches, self.parallel, self.hf.vocab_size, entropy)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The stream of (Hugging Face name, whole tensor)."""
        return stream(self.model, self.hf, self.parallel)

    def load_weights(self, weights: Mapping[str, Tensor], source: str = "weights") -> None:
        load(self.model, self.hf, self.parallel, weights, source=source)

    def moments(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """An optimizer moment under the Hugging Face names of its parameters."""
        optimizer = self.optimizer
        assert optimizer is not None and name in MOMENTS
        return stream(self.model, self.hf, self.parallel, lambda parameter: optimizer.moment(parameter, name))

    def load_moments(self, name: str, values: Mapping[str, Tensor], source: str = "optimizer") -> None:
        optimizer = self.optimizer
        assert optimizer is not None and name in MOMENTS
        load(
            self.model,
            self.hf,
            self.parallel,
            values,
            put=lambda parameter, value: optimizer.moment(parameter, name).copy_(value),
            source=source,
        )

    def _global_sums(self, outputs: list[dict[str, Tensor]]) -> dict[str, float]:
        """Sums of the micro-batches' metrics over stages (the last has them) and replicas, in a fixed order."""
        sums: dict[str, Tensor] = {}
        for metrics in outputs:
            for name, value in metrics.items():
                known = sums.get(name, torch.zeros_like(value))
                sums[name] = torch.maximum(known, value) if name.startswith("max/") else known + value
        local = {name: float(value) for name, value in sums.items()}
        if self.parallel.pipeline > 1:
            last = torch.distributed.get_global_rank(self.parallel.pipeline_group, self.parallel.pipeline - 1)
            box: list[Any] = [local]
            torch.distributed.broadcast_object_list(box, src=last, group=self.parallel.pipeline_group)
            local = box[0]
        total: dict[str, float] = {}
        for part in self.parallel.gather_over_data(local):
            for name, number in part.items():
                known_number = total.get(name, 0.0)
                total[name] = max(known_number, number) if name.startswith("max/") else known_number + number
        return total


def run_schedule(
    model: torch.nn.Module,
    batches: list[TokenBatch],
    parallel: Parallel,
    output_of: Callable[[TokenBatch], Callable[..., Any]],
    forward_only: bool,
) -> list[Any]:
    """Run Megatron's schedule over the micro-batches; the last stage's outputs, in order, nothing on other stages.

    `output_of(batch)` gives the function of the hidden states [T, 1, D] that Megatron calls on the last stage.
    """
    if not batches:
        raise ValueError("batches: expected at least one micro-batch, got none")

    def forward_step(iterator: Iterator[TokenBatch], part: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(iterator).to(parallel.device)
        packed = PackedSeq(batch.cu_seqlens, batch.max_seqlen)
        hidden = part(batch.token_T[None], batch.position_T[None], None, packed_seq_params=packed)
        return hidden, output_of(batch)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=model,
        num_microbatches=len(batches),
        seq_length=max(len(batch.token_T) for batch in batches),
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


def head_outputs(
    model: torch.nn.Module,
    core: PolicyModel,
    batches: list[TokenBatch],
    parallel: Parallel,
    vocab_size: int,
    entropy: bool,
) -> list[tuple[Tensor, Tensor | None]]:
    """Log-probs (and entropies) of every micro-batch, sent from the last stage to all."""

    def output_of(batch: TokenBatch) -> Callable[..., tuple[Tensor, Tensor | None]]:
        def head(hidden: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor | None]:
            return linear_logprob(
                hidden[:, 0],
                core.head_weight(),
                batch.target_T,
                temperature=batch.temperature_T,
                entropy=entropy,
                vocab_size=vocab_size,
                tp_group=parallel.split_group,
            )

        return head

    outputs = run_schedule(model, batches, parallel, output_of, forward_only=True)
    if parallel.pipeline == 1:
        return outputs
    dtype = torch.float64 if core.config.params_dtype == torch.float64 else torch.float32
    results: list[tuple[Tensor, Tensor | None]] = []
    for index, batch in enumerate(batches):
        empty = torch.empty(len(batch.token_T), dtype=dtype, device=parallel.device)
        logprob, spread = outputs[index] if parallel.last_stage else (empty, empty.clone() if entropy else None)
        results.append(
            (parallel.from_last_stage(logprob), None if spread is None else parallel.from_last_stage(spread))
        )
    return results
