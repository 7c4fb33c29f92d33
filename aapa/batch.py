"""The two forms of a training batch: sequences with their signals, and packed tokens with their weights.

Shape legend: P prompt tokens, R response tokens, N sequences, T packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from aapa.kernels.fields import TokenFields


@dataclass
class Sequence:
    """A prompt, a response, and the training signals of the response's tokens.

    Attributes:
        prompt: [P] int64, at least one token.
        response: [R] int64, may be empty.
        role: "rollout" (sampled from the policy) or "expert" (from the data).
        temperature: at which the response was sampled; 1 for experts.
        mask: [R] bool, tokens that take part in the loss; None means all of them.
        advantage, anchor_advantage, old_logprob, ref_logprob, rollout_logprob, correction: [R] float, as in
            `TokenFields`.
        anchored: whether the anchor's component has weight on this sequence.
        anchor_mask: [R] bool, tokens that the anchor speaks of; None means all of them.
    """

    prompt: Tensor
    response: Tensor
    role: Literal["rollout", "expert"]
    temperature: float = 1.0
    mask: Tensor | None = None
    advantage: Tensor | None = None
    anchor_advantage: Tensor | None = None
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    rollout_logprob: Tensor | None = None
    correction: Tensor | None = None
    anchored: bool = False
    anchor_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def tokens(self) -> int:
        """Response tokens that take part in the loss."""
        return len(self.response) if self.mask is None else int(self.mask.sum())


@dataclass(frozen=True)
class BatchCounts:
    """Denominators of (4.1): counts over the whole global batch of one optimizer step, made from masks alone."""

    rollouts: float = 0.0
    rollout_tokens: float = 0.0
    experts: float = 0.0
    expert_tokens: float = 0.0

    @classmethod
    def of(cls, sequences: list[Sequence]) -> BatchCounts:
        """Counts of these sequences; a sequence whose tokens are all masked does not count."""
        sums = dict.fromkeys((f.name for f in fields(cls)), 0.0)
        for sequence in sequences:
            if sequence.tokens:
                sums[f"{sequence.role}s"] += 1
                sums[f"{sequence.role}_tokens"] += sequence.tokens
        return cls(**sums)

    def vector(self) -> Tensor:
        """float64 [4], to be summed over data-parallel ranks."""
        return torch.tensor([getattr(self, f.name) for f in fields(self)], dtype=torch.float64)

    @classmethod
    def from_vector(cls, vector: Tensor) -> BatchCounts:
        return cls(*vector.tolist())


@dataclass
class TokenBatch:
    """One micro-batch: N sequences packed end to end, with the weights of every loss component.

    Entry t of a per-token tensor speaks of the prediction made at t, of the token at t + 1 of the same sequence; the
    response of a sequence of P + R tokens is predicted at its positions P - 1 … P + R - 2.

    Attributes:
        token_T, target_T, position_T: int64 inputs, next tokens (0 at the last position), positions from 0.
        cu_seqlens: [N + 1] int32 offsets, as in flash-attn's varlen interface.
        prompt_N: prompt length of each sequence.
        index_N: place of each sequence in the list that was packed.
        temperature_T: float32.
        weights: component ("rl", "kl", "sft", "adv", "custom") → float32 [T]; see METHOD (4.1).
        advantage_T, anchor_advantage_T, old_logprob_T, ref_logprob_T, rollout_logprob_T, correction_T: float [T] or
            None, as in `TokenFields`.
        sequence_T: int64 [T] or None, place in the batch of the rollout whose unmasked token it is, else -1.
    """

    token_T: Tensor
    target_T: Tensor
    position_T: Tensor
    cu_seqlens: Tensor
    prompt_N: list[int]
    index_N: list[int]
    temperature_T: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)
    advantage_T: Tensor | None = None
    anchor_advantage_T: Tensor | None = None
    old_logprob_T: Tensor | None = None
    ref_logprob_T: Tensor | None = None
    rollout_logprob_T: Tensor | None = None
    correction_T: Tensor | None = None
    sequence_T: Tensor | None = None

    @property
    def max_seqlen(self) -> int:
        return int(self.cu_seqlens.diff().max())

    def fields(self) -> TokenFields:
        """The kernels' view of this batch."""
        return TokenFields(
            target_T=self.target_T,
            temperature_T=self.temperature_T,
            **{f"{name}_weight_T": weight_T for name, weight_T in self.weights.items()},
            advantage_T=self.advantage_T,
            anchor_advantage_T=self.anchor_advantage_T,
            old_logprob_T=self.old_logprob_T,
            ref_logprob_T=self.ref_logprob_T,
            rollout_logprob_T=self.rollout_logprob_T,
            correction_T=self.correction_T,
            sequence_T=self.sequence_T,
        )

    def responses(self, values_T: Tensor) -> list[Tensor]:
        """Values at the predictions of each sequence's response, in packed order: a list of [R_i, …]."""
        bounds = self.cu_seqlens.tolist()
        return [
            values_T[start + prompt - 1 : stop - 1]
            for start, stop, prompt in zip(bounds[:-1], bounds[1:], self.prompt_N, strict=True)
        ]

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device; itself where it lies there already."""
        moved: dict[str, Any] = {
            f.name: value.to(device) if isinstance(value := getattr(self, f.name), Tensor) else value
            for f in fields(self)
        }
        moved["weights"] = {name: weight_T.to(device) for name, weight_T in self.weights.items()}
        return TokenBatch(**moved)
