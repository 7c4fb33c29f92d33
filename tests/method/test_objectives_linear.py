"""Objectives through `linear_policy_loss`, against autograd through a dense log-softmax and straight lines.

Temperatures and weights of a packed batch are float32 by design; the references take them rounded alike. Everything
else is float64 and has to agree to 1e-10.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from aapa import CHORD, GRPO, SFT, Anchor, Objective
from aapa.batch import BatchCounts, Sequence, TokenBatch
from aapa.kernels import TokenFields, TokenLossSpec, linear_policy_loss
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
from straight_line import MIXED, ROLLOUTS, bare, kept, loss_of, rounded, with_signals

VOCAB, PADDING, WIDTH = 11, 3, 6


@dataclass
class Problem:
    """Sequences, the hidden states of each, and a head with some rows of padding."""

    sequences: list[Sequence]
    hidden: list[Tensor]
    weight: Tensor


def dense(problem: Problem, hidden: list[Tensor], weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies of each response, [R] each, from logits in full."""
    logprobs, entropies = [], []
    for s, h in zip(problem.sequences, hidden, strict=True):
        log_p = torch.log_softmax(h @ weight[:VOCAB].T / rounded(s.temperature), dim=1)
        predicting = log_p[len(s.prompt) - 1 : len(s) - 1]
        logprobs.append(torch.stack([row[token] for row, token in zip(predicting, s.response, strict=True)])
                        if len(s.response) else predicting.sum(1))  # fmt: skip
        entropies.append(-(predicting.exp() * predicting).sum(1))
    return logprobs, entropies


def make(objective: Objective, seed: int, old: bool = True) -> Problem:
    g = torch.Generator().manual_seed(seed)
    sequences = bare(ROLLOUTS if type(objective) is GRPO else MIXED, seed, VOCAB)
    hidden = [torch.randn(len(s), WIDTH, generator=g, dtype=torch.float64) for s in sequences]
    weight = torch.randn(VOCAB + PADDING, WIDTH, generator=g, dtype=torch.float64)
    made = Problem(sequences, hidden, weight)
    logprobs, _ = dense(made, hidden, weight)
    made.sequences = with_signals(sequences, logprobs, objective, seed + 1, old=old)
    return made


def through_kernel(
    problem: Problem, objective: Objective, step: int, budget: int, main_grad: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, gradients of the hidden states and of the head, summed over micro-batches."""
    hidden = [h.clone().requires_grad_() for h in problem.hidden]
    weight = problem.weight.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for batch in pack(problem.sequences, budget, objective, step=step):
        hidden_TD = torch.cat([hidden[index] for index in batch.index_N])
        fields, spec = objective.lower(batch)
        loss, _ = linear_policy_loss(hidden_TD, weight, fields, spec, main_grad=main_grad, vocab_size=VOCAB)
        loss.backward()
        total += loss.detach()
    assert weight.grad is not None
    return total, [h.grad if h.grad is not None else torch.zeros_like(h) for h in hidden], weight.grad


def check(
    problem: Problem,
    objective: Objective,
    reference: Callable[[list[Tensor], list[Tensor]], Tensor],
    budget: int = 10_000,
    step: int = 0,
) -> None:
    """`reference` makes the loss of log-probs and entropies by response."""
    hidden = [h.clone().requires_grad_() for h in problem.hidden]
    weight = problem.weight.clone().requires_grad_()
    wanted = reference(*dense(problem, hidden, weight))
    *wanted_hidden, wanted_weight = torch.autograd.grad(wanted, [*hidden, weight], materialize_grads=True)
    assert wanted_weight.abs().sum() > 0

    # What sits in the accumulator already stays: gradients are added.
    before = torch.rand(problem.weight.shape, generator=torch.Generator().manual_seed(1))
    for main_grad in (None, before.clone()):
        loss, hidden_grads, weight_grad = through_kernel(problem, objective, step, budget, main_grad)
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(hidden_grads, wanted_hidden, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        if main_grad is None:
            torch.testing.assert_close(weight_grad, wanted_weight, rtol=1e-10, atol=1e-12)
        else:
            assert not weight_grad.any()
            # The accumulator is float32.
            torch.testing.assert_close(main_grad - before, wanted_weight.float(), rtol=1e-5, atol=1e-6)


SETTINGS: dict[str, Objective] = {
    "plain": GRPO(),
    "anchor and kl": GRPO(beta=0.2, anchor=Anchor(weight=0.3), clip_low=0.1, clip_high=0.28),
    "dual clip, grpo": GRPO(delta=1.5, aggregation="grpo", anchor=Anchor(weight=0.3)),
    "cispo": GRPO(surrogate="cispo", beta=0.2, kl="k1", anchor=Anchor(weight=0.3)),
    "k2, dr_grpo": GRPO(beta=0.2, kl="k2", aggregation="dr_grpo", max_response_length=9),
    "k3 uncorrected": GRPO(beta=0.2, kl_correction=False, correction="token_truncate", correction_max=1.5),
    "sequence": GRPO(ratio_level="sequence", beta=0.2, anchor=Anchor(weight=0.3)),
    "sequence, cispo": GRPO(ratio_level="sequence", surrogate="cispo", beta=0.1, kl="k2", anchor=Anchor(weight=0.3)),
    "sequence, corrected": GRPO(
        ratio_level="sequence", correction="sequence_mask", correction_min=0.5, aggregation="grpo", delta=1.4
    ),
    "sft": SFT(),
    "a-sft": SFT(anchor=Anchor(weight=0.3)),
    "chord with phi": CHORD(mu=0.3, beta=0.2, anchor=Anchor(weight=0.3)),
    "chord without phi": CHORD(mu=0.6, phi=False, delta=1.5),
    "chord, sequence": CHORD(mu=0.3, ratio_level="sequence", beta=0.2, kl="k1", anchor=Anchor(weight=0.3)),
    "chord, sft alone": CHORD(mu=1.0),
}


@pytest.mark.parametrize("budget", [12, 10_000])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_objectives_through_the_head(name: str, old: bool, budget: int) -> None:
    objective = SETTINGS[name]
    problem = make(objective, seed=len(name), old=old or objective.correction != "none")
    check(problem, objective, lambda logprobs, _: loss_of(problem.sequences, logprobs, objective), budget)


@dataclass(frozen=True)
class Own(Objective):
    """A user's objective: each unmasked rollout token weighs 1 / (their number)."""

    loss: Any
    scope: Literal["token", "batch"]

    def components(self, step: int) -> tuple[str, ...]:
        return ("custom",)

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        return {"custom": 1.0 / counts.rollout_tokens} if sequence.role == "rollout" else {}

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        return batch.fields(), TokenLossSpec(custom_loss=self.loss, custom_scope=self.scope)


def reinforce(logprob: Tensor, entropy: Tensor | None, fields: TokenFields) -> Tensor:
    assert fields.advantage_T is not None
    return -fields.advantage_T * logprob


def with_entropy(logprob: Tensor, entropy: Tensor | None, fields: TokenFields) -> Tensor:
    """REINFORCE with a bonus on the entropy, and a ratio, so that several fields are read."""
    assert entropy is not None and fields.advantage_T is not None and fields.old_logprob_T is not None
    return -fields.advantage_T * torch.exp(logprob - fields.old_logprob_T) - 0.3 * entropy - 0.1 * entropy * logprob


def batch_spread(logprob: Tensor, entropy: Tensor | None, fields: TokenFields) -> Tensor:
    """Every token's loss hangs on all tokens."""
    assert entropy is not None and fields.advantage_T is not None
    return (logprob - logprob.mean()) ** 2 - (fields.advantage_T - fields.advantage_T.mean()) * logprob * entropy.sum()


def own_reference(problem: Problem, function: Any) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """The mean of the custom loss of all unmasked rollout tokens."""

    def reference(logprobs: list[Tensor], entropies: list[Tensor]) -> Tensor:
        places = [(i, t) for i, s in enumerate(problem.sequences) if s.role == "rollout" for t in kept(s)]

        def collect(values: list[Any]) -> Tensor:
            return torch.stack([values[i][t] for i, t in places])

        fields = TokenFields(
            target_T=torch.zeros(len(places), dtype=torch.long),
            advantage_T=collect([s.advantage for s in problem.sequences]),
            old_logprob_T=collect([s.old_logprob for s in problem.sequences]),
        )
        return rounded(1 / len(places)) * function(collect(logprobs), collect(entropies), fields).sum()

    return reference


@pytest.mark.parametrize("function", [reinforce, with_entropy])
@pytest.mark.parametrize("scope", ["token", "batch"])
@pytest.mark.parametrize("budget", [12, 10_000])
def test_a_custom_loss_of_single_tokens(function: Any, scope: Literal["token", "batch"], budget: int) -> None:
    objective = Own(function, scope)
    problem = make(objective, seed=4)
    check(problem, objective, own_reference(problem, function), budget)


def test_a_custom_loss_of_the_whole_micro_batch() -> None:
    objective = Own(batch_spread, "batch")
    problem = make(objective, seed=5)
    check(problem, objective, own_reference(problem, batch_spread))


@dataclass(frozen=True)
class Mixture(GRPO):
    """GRPO with a component of the user's own beside its others."""

    def components(self, step: int) -> tuple[str, ...]:
        return (*super().components(step), "custom")

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        weights = super().weights(sequence, counts, step)
        return {**weights, "custom": weights["rl"]} if weights else weights

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        fields, spec = super().lower(batch)
        return fields, TokenLossSpec(**{**vars(spec), "custom_loss": batch_spread, "custom_scope": "batch"})


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_custom_loss_beside_other_components(level: Literal["token", "sequence"]) -> None:
    objective = Mixture(ratio_level=level, beta=0.2, anchor=Anchor(weight=0.3))
    problem = make(GRPO(), seed=6)
    own = own_reference(problem, batch_spread)
    check(
        problem,
        objective,
        lambda logprobs, entropies: loss_of(problem.sequences, logprobs, objective) + own(logprobs, entropies),
    )
