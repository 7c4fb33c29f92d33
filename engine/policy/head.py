"""The loss on the last pipeline stage: the LM head on this rank's hidden states."""

from __future__ import annotations

from dataclasses import replace

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from aapa.engine.policy.shard import Shard
from aapa.kernels import linear_policy_loss
from aapa.kernels.fields import COMPONENTS, TokenFields
from aapa.objectives.base import Objective


def head_loss(
    hidden: Tensor, weight_VD: Tensor, shard: Shard, objective: Objective, vocab_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's part of the global loss, whose gradients are already made, and its metrics.

    Args:
        hidden: [rows, D] of this rank.
        weight_VD: this rank's rows of the head, with `main_grad`.
    """
    fields, spec = objective.lower(shard.batch)
    parallel, sequence = shard.parallel, shard.parallel.sequence
    if shard.context is None or spec.separable:
        fields = shard.fields(fields)
    else:
        # Such a loss looks at whole sequences: the first context-parallel rank computes it on all tokens.
        hidden, fields = _all_tokens(hidden, fields, shard)
        sequence = False
    return linear_policy_loss(
        hidden,
        weight_VD,
        fields,
        spec,
        main_grad=weight_VD.main_grad,  # type: ignore[attr-defined]
        vocab_size=vocab_size,
        tp_group=parallel.split_group,
        sequence_parallel=sequence,
    )


def _all_tokens(hidden: Tensor, fields: TokenFields, shard: Shard) -> tuple[Tensor, TokenFields]:
    """Hidden states and fields of all ranks' tokens; the weights are 0 but on the first context-parallel rank."""
    parallel = shard.parallel
    if parallel.sequence:
        # Every tensor-parallel rank will have the whole gradient, so going back is only a cut.
        hidden = gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=False, group=parallel.tensor_group
        )
    assert shard.context is not None
    hidden, fields = shard.context.gather(hidden), shard.padded_fields(fields)
    if parallel.context_rank > 0:
        silent = {
            f"{name}_weight_T": torch.zeros_like(weight_T)
            for name in COMPONENTS
            if (weight_T := fields.weight(name)) is not None
        }
        sequence_T = None if fields.sequence_T is None else torch.full_like(fields.sequence_T, -1)
        fields = replace(fields, **silent, sequence_T=sequence_T)
    return hidden, fields
