"""From sequences to micro-batches of packed tokens with fixed weights (METHOD 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aapa.batch import BatchCounts, Sequence, TokenBatch
from aapa.kernels.fields import COMPONENTS
from aapa.objectives.base import Objective

SIGNALS = ("advantage", "anchor_advantage", "old_logprob", "ref_logprob", "rollout_logprob", "correction")


def pack(
    sequences: list[Sequence],
    max_tokens: int,
    objective: Objective | None = None,
    counts: BatchCounts | None = None,
    step: int = 0,
) -> list[TokenBatch]:
    """Micro-batches of at most `max_tokens` tokens that hold the sequences in their order.

    With an objective, every token gets its component weights: objective.weights(...) x mask. They depend on the
    global `counts` alone, so how sequences are spread over micro-batches and ranks cannot change the loss (4.1).
    A sequence longer than `max_tokens` gets a micro-batch of its own.

    Args:
        sequences: of this rank.
        max_tokens: the memory knob, tokens per micro-batch.
        objective: None to pack for scoring only.
        counts: over the global batch of the optimizer step; None takes the counts of `sequences`.
        step: of the stage, for schedules.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    counts = BatchCounts.of(sequences) if counts is None else counts
    dtypes = {name: signal.dtype for name in SIGNALS for s in sequences if (signal := getattr(s, name)) is not None}
    batches = []
    for indices in split_by_tokens([len(s) for s in sequences], max_tokens):
        batch = _pack_one(sequences, indices)
        _fill_signals(batch, dtypes)
        if objective is not None:
            batch.weights = _weights(batch, sequences, objective, counts, step)
            batch.sequence_T = _places([sequences[i] for i in indices])
        batches.append(batch)
    return batches


def split_by_tokens(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Consecutive runs of indices whose lengths sum to at most `max_tokens`."""
    runs: list[list[int]] = []
    total = 0
    for index, length in enumerate(lengths):
        if not runs or total + length > max_tokens:
            runs.append([])
            total = 0
        runs[-1].append(index)
        total += length
    return runs


def _pack_one(sequences: list[Sequence], indices: list[int]) -> TokenBatch:
    chosen = [sequences[i] for i in indices]
    token_T = torch.cat([torch.cat([s.prompt, s.response]) for s in chosen])
    lengths_N = torch.tensor([len(s) for s in chosen])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths_N.cumsum(0)]).to(torch.int32)
    target_T = torch.cat([token_T[1:], token_T.new_zeros(1)])
    target_T[cu_seqlens[1:].long() - 1] = 0
    signals: dict[str, Any] = {
        f"{name}_T": _scatter([getattr(s, name) for s in chosen], chosen)
        for name in SIGNALS
        if any(getattr(s, name) is not None for s in chosen)
    }
    return TokenBatch(
        token_T=token_T,
        target_T=target_T,
        position_T=torch.cat([torch.arange(len(s)) for s in chosen]),
        cu_seqlens=cu_seqlens,
        prompt_N=[len(s.prompt) for s in chosen],
        index_N=list(indices),
        temperature_T=torch.cat([torch.full((len(s),), s.temperature) for s in chosen]),
        **signals,
    )


def _scatter(values: list[Tensor | None], sequences: list[Sequence]) -> Tensor:
    """[R] values of each response laid at its prediction positions, 0 elsewhere."""
    dtype = next(v.dtype for v in values if v is not None)
    parts = []
    for value, sequence in zip(values, sequences, strict=True):
        whole = torch.zeros(len(sequence), dtype=dtype)
        if value is not None:
            whole[len(sequence.prompt) - 1 : len(sequence) - 1] = value
        parts.append(whole)
    return torch.cat(parts)


def _weights(
    batch: TokenBatch, sequences: list[Sequence], objective: Objective, counts: BatchCounts, step: int
) -> dict[str, Tensor]:
    """Component weights of a micro-batch. Every component of the objective is present, zeros where it has no token."""
    chosen = [sequences[i] for i in batch.index_N]
    per_sequence = [objective.weights(s, counts, step) for s in chosen]
    components = objective.components(step)
    _check_components(objective, components, per_sequence)
    weights = {}
    for component in components:
        values: list[Tensor | None] = []
        for sequence, weight in zip(chosen, per_sequence, strict=True):
            full = torch.full((len(sequence.response),), weight.get(component, 0.0), dtype=torch.float64)
            values.append(_masked(full, sequence, component).float())
        weights[component] = _scatter(values, chosen)
    _fill_missing_signals(batch, weights)
    return weights


def _check_components(objective: Objective, components: tuple[str, ...], weights: list[dict[str, float]]) -> None:
    """A component that does not exist, or a weight without one, would train nothing, without a word."""
    kind = type(objective).__name__
    if unknown := [name for name in components if name not in COMPONENTS]:
        raise ValueError(f"{kind}.components: expected some of {', '.join(COMPONENTS)}, got {unknown[0]!r}")
    # One of the kernels' components that is absent at this step (the anchor's at lambda 0) may have a weight.
    if unknown := [name for found in weights for name in found if name not in COMPONENTS]:
        raise ValueError(f"{kind}.weights: expected weights of {', '.join(components)}, got {unknown[0]!r}")


def _masked(weight: Tensor, sequence: Sequence, component: str) -> Tensor:
    if sequence.mask is not None:
        weight = weight * sequence.mask
    if component == "adv" and sequence.anchor_mask is not None:
        weight = weight * sequence.anchor_mask
    return weight


def _places(sequences: list[Sequence]) -> Tensor:
    """`TokenBatch.sequence_T`: the place of each rollout at its unmasked predictions, -1 elsewhere."""
    parts = []
    for place, sequence in enumerate(sequences):
        whole = torch.full((len(sequence),), -1, dtype=torch.long)
        if sequence.role == "rollout":
            kept = slice(None) if sequence.mask is None else sequence.mask
            whole[len(sequence.prompt) - 1 : len(sequence) - 1][kept] = place
        parts.append(whole)
    return torch.cat(parts)


def _fill_signals(batch: TokenBatch, dtypes: dict[str, torch.dtype]) -> None:
    """Zeros for a signal that only sequences of other micro-batches have, so that the cut changes nothing (4.1)."""
    for name, dtype in dtypes.items():
        if getattr(batch, f"{name}_T") is None:
            setattr(batch, f"{name}_T", torch.zeros(len(batch.token_T), dtype=dtype))


def _fill_missing_signals(batch: TokenBatch, weights: dict[str, Tensor]) -> None:
    """A micro-batch without any rollout still needs the tensors that its (all-zero) components speak of."""
    zeros_T = torch.zeros(len(batch.token_T))
    for component, signal in (("rl", "advantage_T"), ("adv", "anchor_advantage_T"), ("kl", "ref_logprob_T")):
        if component in weights and getattr(batch, signal) is None:
            if bool((weights[component] != 0).any()):
                raise ValueError(f"{signal}: expected values, since the component {component!r} has weight; got None")
            setattr(batch, signal, zeros_T)
