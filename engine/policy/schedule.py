"""Megatron's pipeline schedules over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from aapa.batch import TokenBatch
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.shard import Shard, local_rows
from aapa.kernels import linear_logprob

# (micro-batch's place, its shard) → the function of the last stage's hidden states that Megatron calls.
OutputOf = Callable[[int, Shard], Callable[..., Any]]


class Communicator(P2PCommunicator):
    """Megatron's, told the shapes of what it receives.

    Megatron has neighbours send each other the shape before each tensor. Where both neighbours are the same peer (two
    stages, interleaved) it mixes up both directions, and with few micro-batches two ranks wait for each other. But
    every rank knows the micro-batches and the order in which a schedule takes them.
    """

    def __init__(self, config: Any, parallel: Parallel, rows: list[int]) -> None:
        """`rows` are those of each micro-batch's hidden states on a rank."""
        super().__init__(parallel.pipeline_group, config)
        chunks = parallel.virtual
        size = config.microbatch_group_size_per_vp_stage if chunks > 1 else len(rows)
        table = [(rows[place], chunk) for place, chunk in get_schedule_table(len(rows), chunks, size)]
        # The first stage makes its first chunk's input itself, the last stage its last chunk's gradient.
        from_previous = [n for n, chunk in table if not (parallel.first_stage and chunk == 0)]
        from_next = [n for n, chunk in table if not (parallel.last_stage and chunk == 0)]
        self._previous, self._next = iter(from_previous), iter(from_next)

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[list[int], list[int]]:
        width = self.config.hidden_size
        return (
            [next(self._previous), 1, width] if recv_prev else [0, 0, 0],
            [next(self._next), 1, width] if recv_next else [0, 0, 0],
        )


def run_schedule(
    models: Sequence[torch.nn.Module],
    batches: list[TokenBatch],
    parallel: Parallel,
    output_of: OutputOf,
    forward_only: bool,
    everywhere: bool = False,
) -> list[Any]:
    """Run the schedule over the micro-batches; the last stage's outputs, in order, nothing on other stages.

    Args:
        models: this stage's model chunks, as many as `parallel.virtual`.
        output_of: gives the function of this rank's hidden states [T, 1, D] that is called on the last stage.
        everywhere: whether gradients are summed on all ranks also under the distributed optimizer.
    """
    if not batches:
        raise ValueError("batches: expected at least one micro-batch, got none")
    assert len(models) == parallel.virtual, "expected as many model chunks as the layout has"
    interleaved = parallel.virtual > 1
    # The interleaved schedule takes whole rounds of micro-batches.
    fillers = -len(batches) % parallel.pipeline if interleaved else 0
    work = [*batches, *[_filler(batches)] * fillers]

    def forward_step(
        iterator: Iterator[tuple[int, TokenBatch]], part: torch.nn.Module
    ) -> tuple[Tensor, Callable[..., Any]]:
        place, batch = next(iterator)
        shard = Shard(batch, parallel)
        hidden = part(shard.token_T[None], shard.position_T[None], None, packed_seq_params=shard.packed)
        return hidden, output_of(place, shard)

    config = models[0].config
    run = get_forward_backward_func(parallel.pipeline, parallel.virtual if interleaved else None)
    rows = [local_rows(len(batch.token_T), parallel) for batch in work]
    communicator = {} if parallel.pipeline == 1 else {"p2p_communicator": Communicator(config, parallel, rows)}
    iterators = [iter(list(enumerate(work))) for _ in models]
    outputs = run(
        forward_step_func=forward_step,
        data_iterator=iterators if interleaved else iterators[0],
        model=list(models) if interleaved else models[0],
        num_microbatches=len(work),
        seq_length=max(len(batch.token_T) for batch in batches),
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
        force_all_reduce=everywhere,
        pg_collection=_groups(parallel),
        **communicator,
    )
    return outputs[: len(batches)]


def _filler(batches: list[TokenBatch]) -> TokenBatch:
    """The shortest micro-batch again, without weight in any loss."""
    shortest = min(batches, key=lambda batch: len(batch.token_T))
    weights = {name: torch.zeros_like(weight_T) for name, weight_T in shortest.weights.items()}
    sequence_T = None if shortest.sequence_T is None else torch.full_like(shortest.sequence_T, -1)
    return replace(shortest, weights=weights, sequence_T=sequence_T)


def _groups(parallel: Parallel) -> ProcessGroupCollection:
    groups = ProcessGroupCollection()
    groups.tp, groups.pp, groups.cp = parallel.tensor_group, parallel.pipeline_group, parallel.context_group
    groups.dp_cp = parallel.gradient_group
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    return groups


def head_outputs(
    models: Sequence[Any],
    head_weight: Callable[[], Tensor],
    batches: list[TokenBatch],
    parallel: Parallel,
    vocab_size: int,
    entropy: bool,
) -> list[tuple[Tensor, Tensor | None]]:
    """Log-probs (and entropies) of every micro-batch, sent from the last stage to all.

    Args:
        head_weight: this rank's rows of the head, asked for on the last stage.
    """

    def output_of(place: int, shard: Shard) -> Callable[..., tuple[Tensor, Tensor | None]]:
        def head(hidden: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor | None]:
            logprob_T, entropy_T = linear_logprob(
                hidden[:, 0],
                head_weight(),
                shard.mine(shard.batch.target_T),
                temperature=shard.mine(shard.batch.temperature_T, fill=1.0),
                entropy=entropy,
                vocab_size=vocab_size,
                tp_group=parallel.split_group,
                sequence_parallel=parallel.sequence,
            )
            return shard.whole(logprob_T), None if entropy_T is None else shard.whole(entropy_T)

        return head

    outputs = run_schedule(models, batches, parallel, output_of, forward_only=True)
    if parallel.pipeline == 1:
        return outputs
    dtype = torch.float64 if models[0].config.params_dtype == torch.float64 else torch.float32
    results: list[tuple[Tensor, Tensor | None]] = []
    for index, batch in enumerate(batches):
        empty = torch.empty(len(batch.token_T), dtype=dtype, device=parallel.device)
        logprob, spread = outputs[index] if parallel.last_stage else (empty, empty.clone() if entropy else None)
        results.append(
            (
                parallel.from_last_stage(logprob.contiguous()),
                None if spread is None else parallel.from_last_stage(spread.contiguous()),
            )
        )
    return results
