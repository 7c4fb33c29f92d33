"""METHOD (4.1): micro-batches, order and data parallelism leave the loss alone; lambda = 0 is the base objective."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aapa import CHORD, GRPO, SFT, Anchor, Objective, Schedule
from aapa.batch import BatchCounts, Sequence
from aapa.kernels import linear_policy_loss
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
from straight_line import EXPERTS, MIXED, ROLLOUTS, Row, bare, with_signals

VOCAB, WIDTH = 11, 5


@dataclass
class Model:
    """Hidden states of each sequence and a head that all share."""

    hidden: list[Tensor]
    weight: Tensor


@dataclass
class Outcome:
    loss: Tensor
    hidden_grads: list[Tensor]
    weight_grad: Tensor
    sums: dict[str, float]

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.loss + other.loss,
            [a + b for a, b in zip(self.hidden_grads, other.hidden_grads, strict=True)],
            self.weight_grad + other.weight_grad,
            {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in {**self.sums, **other.sums}},
        )


def make(rows: tuple[Row, ...], objective: Objective, seed: int) -> tuple[list[Sequence], Model]:
    """Rollouts with signals around the model's log-probs, so that ratios differ from 1."""
    g = torch.Generator().manual_seed(seed)
    sequences = bare(rows, seed, VOCAB)
    hidden = [torch.randn(len(s), WIDTH, generator=g, dtype=torch.float64) for s in sequences]
    weight = torch.randn(VOCAB, WIDTH, generator=g, dtype=torch.float64)
    logprobs = [
        torch.log_softmax(h[len(s.prompt) - 1 : len(s) - 1] @ weight.T / s.temperature, dim=1)
        .gather(1, s.response[:, None])
        .squeeze(1)
        for s, h in zip(sequences, hidden, strict=True)
    ]
    return with_signals(sequences, logprobs, objective, seed + 1), Model(hidden, weight)


def outcome(
    sequences: list[Sequence],
    model: Model,
    objective: Objective,
    *,
    order: list[int],
    budget: int,
    counts: BatchCounts | None = None,
    step: int = 0,
) -> Outcome:
    """Sums over the micro-batches of the sequences named in `order`; gradients lie where the sequences lay before."""
    hidden = [h.clone().requires_grad_() for h in model.hidden]
    weight = model.weight.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    sums: dict[str, float] = {}
    for batch in pack([sequences[i] for i in order], budget, objective, counts, step):
        hidden_TD = torch.cat([hidden[order[place]] for place in batch.index_N])
        part, metrics = linear_policy_loss(hidden_TD, weight, *objective.lower(batch))
        part.backward()
        loss += part.detach()
        for name, value in metrics.items():
            if not name.startswith("max/"):
                sums[name] = sums.get(name, 0.0) + float(value)
    zeros = [torch.zeros_like(h) if h.grad is None else h.grad for h in hidden]
    return Outcome(loss, zeros, torch.zeros_like(weight) if weight.grad is None else weight.grad, sums)


def assert_equal(ours: Outcome, theirs: Outcome) -> None:
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.weight_grad, theirs.weight_grad, rtol=1e-10, atol=1e-12)
    for a, b in zip(ours.hidden_grads, theirs.hidden_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # Where the rollout engine does not know a log-prob, "sum/prob_error" is not known either.
    assert ours.sums == pytest.approx(theirs.sums, rel=1e-9, abs=1e-10, nan_ok=True)


OBJECTIVES: dict[str, tuple[tuple[Row, ...], Objective]] = {
    "sft": (EXPERTS, SFT()),
    "a-sft": (MIXED, SFT(anchor=Anchor(weight=0.3))),
    "grpo": (ROLLOUTS, GRPO(beta=0.2)),
    "grpo, per sequence, dual clip": (ROLLOUTS, GRPO(beta=0.2, kl="k1", aggregation="grpo", delta=1.4)),
    "grpo, dr_grpo, cispo": (
        ROLLOUTS,
        GRPO(beta=0.2, kl="k2", aggregation="dr_grpo", max_response_length=9, surrogate="cispo"),
    ),
    "grpo, corrected": (ROLLOUTS, GRPO(beta=0.2, correction="token_mask", correction_max=1.4, correction_min=0.7)),
    "gspo": (ROLLOUTS, GRPO(beta=0.2, ratio_level="sequence", aggregation="grpo", correction="sequence_truncate")),
    "a-grpo": (ROLLOUTS, GRPO(beta=0.2, anchor=Anchor(weight=0.3), aggregation="grpo")),
    "a-gspo": (ROLLOUTS, GRPO(beta=0.2, ratio_level="sequence", anchor=Anchor(weight=0.3))),
    "chord": (MIXED, CHORD(mu=0.3, beta=0.2)),
    "a-chord": (MIXED, CHORD(mu=0.4, beta=0.2, phi=False, anchor=Anchor(weight=0.3))),
    "a-chord, sequence": (MIXED, CHORD(mu=0.4, beta=0.2, anchor=Anchor(weight=0.3), ratio_level="sequence")),
    "chord, sft alone": (MIXED, CHORD(mu=1.0, anchor=Anchor(weight=0.3))),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=6)
@given(data=st.data(), seed=st.integers(0, 10**6), budget=st.integers(1, 70))
def test_micro_batches_and_order_change_nothing(name: str, data: st.DataObject, seed: int, budget: int) -> None:
    rows, objective = OBJECTIVES[name]
    sequences, model = make(rows, objective, seed)
    places = list(range(len(rows)))
    whole = outcome(sequences, model, objective, order=places, budget=10_000)
    order = data.draw(st.permutations(places))
    assert_equal(outcome(sequences, model, objective, order=order, budget=budget), whole)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=6)
@given(data=st.data(), seed=st.integers(0, 10**6), budgets=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_two_ranks_that_sum_their_counts_change_nothing(
    name: str, data: st.DataObject, seed: int, budgets: tuple[int, int]
) -> None:
    rows, objective = OBJECTIVES[name]
    sequences, model = make(rows, objective, seed)
    places = list(range(len(rows)))
    whole = outcome(sequences, model, objective, order=places, budget=10_000)
    order = data.draw(st.permutations(places))
    # A rank may have nothing but empty or masked sequences, or experts alone.
    cut = data.draw(st.integers(1, len(places) - 1))
    ranks = (order[:cut], order[cut:])
    counts = BatchCounts.from_vector(sum(BatchCounts.of([sequences[i] for i in rank]).vector() for rank in ranks))
    parts = [
        outcome(sequences, model, objective, order=rank, budget=budget, counts=counts)
        for rank, budget in zip(ranks, budgets, strict=True)
    ]
    assert_equal(parts[0] + parts[1], whole)


def test_counts_of_one_rank_alone_would_change_the_loss() -> None:
    """Else the tests above would hold for any loss at all."""
    rows, objective = OBJECTIVES["a-grpo"]
    sequences, model = make(rows, objective, 3)
    whole = outcome(sequences, model, objective, order=list(range(9)), budget=10_000)
    halves = [
        outcome(sequences, model, objective, order=part, budget=10_000) for part in ([0, 1, 2, 3], [4, 5, 6, 7, 8])
    ]
    assert abs(float((halves[0] + halves[1]).loss - whole.loss)) > 1e-3


@pytest.mark.parametrize("budget", [9, 10_000])
@pytest.mark.parametrize("weight", [0.0, Schedule("linear", 1.0, 0.0, steps=5, warmup=2)])
@pytest.mark.parametrize("base", [
    SFT(), GRPO(beta=0.2), GRPO(aggregation="grpo"), GRPO(ratio_level="sequence", beta=0.1, surrogate="cispo"),
    CHORD(mu=0.3, beta=0.2), CHORD(mu=1.0), CHORD(mu=0.2, ratio_level="sequence"),
])  # fmt: skip
def test_lambda_zero_is_the_base_objective_bit_for_bit(base: Objective, weight: float | Schedule, budget: int) -> None:
    """Whatever the sequences still hold of an anchor, and also where lambda is 0 at this step alone."""
    anchored = dataclasses.replace(base, anchor=Anchor(weight=weight))  # type: ignore[type-var]
    sequences, model = make(EXPERTS if isinstance(base, SFT) else MIXED, base, 11)
    bare_ones = [dataclasses.replace(s, anchored=False, anchor_advantage=None, anchor_mask=None) for s in sequences]
    for step in (0, 7):
        plain = outcome(bare_ones, model, base, order=list(range(len(sequences))), budget=budget, step=step)
        for given_ones in (sequences, bare_ones):
            ours = outcome(given_ones, model, anchored, order=list(range(len(sequences))), budget=budget, step=step)
            assert torch.equal(ours.loss, plain.loss)
            assert torch.equal(ours.weight_grad, plain.weight_grad)
            assert all(map(torch.equal, ours.hidden_grads, plain.hidden_grads))
            assert ours.sums == plain.sums
    assert plain.weight_grad.abs().sum() > 0
