"""Weights of objectives (METHOD 4.1) against the aggregation formulas written out, and the packed layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa import GRPO, SFT, Anchor, Schedule
from aapa.batch import BatchCounts, Sequence
from aapa.packing import pack, split_by_tokens


def sequences(seed: int, count: int, roles: str = "rollout") -> list[Sequence]:
    g = torch.Generator().manual_seed(seed)

    def size(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    made = []
    for index in range(count):
        prompt, response = size(1, 5), size(0, 8)
        mask = torch.rand(response, generator=g) < 0.6 if index % 3 == 1 else None
        role = roles if roles != "mixed" else ("rollout", "expert")[index % 2]
        made.append(
            Sequence(
                prompt=torch.randint(0, 50, (prompt,), generator=g),
                response=torch.randint(0, 50, (response,), generator=g),
                role=role,
                mask=mask,
                advantage=torch.randn(response, generator=g) if role == "rollout" else None,
                anchor_advantage=torch.randn(response, generator=g) if role == "rollout" else None,
                ref_logprob=torch.randn(response, generator=g),
                anchored=role == "rollout" and index % 4 != 2,
            )
        )
    return made


def expected_weight(objective: GRPO, all_: list[Sequence], s: Sequence) -> float:
    """TRL's aggregations, from the definition, over the sequences that have an unmasked token."""
    alive = [x for x in all_ if x.tokens]
    if objective.aggregation == "dapo":
        return 1 / sum(x.tokens for x in alive)
    if objective.aggregation == "grpo":
        return 1 / (len(alive) * s.tokens)
    return 1 / (len(alive) * objective.max_response_length)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 500),
    count=st.integers(1, 9),
    budget=st.integers(1, 60),
    aggregation=st.sampled_from(["dapo", "grpo", "dr_grpo"]),
)
def test_grpo_weights_are_the_aggregations_written_out(seed, count, budget, aggregation):
    length = 16 if aggregation == "dr_grpo" else None
    objective = GRPO(beta=0.3, aggregation=aggregation, max_response_length=length, anchor=Anchor(weight=0.5))
    made = sequences(seed, count)
    seen = []
    for batch in pack(made, budget, objective):
        rl, kl, adv = (batch.responses(batch.weights[name]) for name in ("rl", "kl", "adv"))
        for place, index in enumerate(batch.index_N):
            s = made[index]
            seen.append(index)
            mask = torch.ones(len(s.response)) if s.mask is None else s.mask.float()
            w = expected_weight(objective, made, s) * mask if s.tokens else mask * 0
            torch.testing.assert_close(rl[place], w.float(), rtol=1e-6, atol=0)
            torch.testing.assert_close(kl[place], (0.3 * w).float(), rtol=1e-6, atol=0)
            torch.testing.assert_close(adv[place], (0.5 * w * s.anchored).float(), rtol=1e-6, atol=0)
        for name, weight in batch.weights.items():
            inside = sum(float(part.double().sum()) for part in batch.responses(weight))
            assert inside == pytest.approx(float(weight.double().sum())), f"{name} has weight outside responses"
    assert seen == list(range(count))


def test_sft_divides_by_expert_tokens_and_anchors_per_sequence():
    made = [s for s in sequences(3, 12, "mixed") if s.tokens]
    objective = SFT(anchor=Anchor(weight=0.4))
    experts = [s for s in made if s.role == "expert"]
    rollouts = [s for s in made if s.role == "rollout"]
    (batch,) = pack(made, 10_000, objective)
    assert float(batch.weights["sft"].double().sum()) == pytest.approx(1.0, rel=1e-6)
    adv = batch.responses(batch.weights["adv"])
    for s, weight in zip(made, adv, strict=True):
        wanted = 0.4 / len(rollouts) if s.role == "rollout" and s.anchored else 0.0
        assert float(weight.double().sum()) == pytest.approx(wanted, rel=1e-6)
    assert set(batch.weights) == {"sft", "adv"}
    assert len(experts) > 2


def test_components_with_weight_zero_do_not_exist():
    assert GRPO(anchor=Anchor(weight=0.0)).components(0) == GRPO().components(0) == ("rl",)
    assert SFT(anchor=Anchor(weight=0.0)).components(0) == ("sft",)
    assert not SFT(anchor=Anchor(weight=0.0)).uses_rollouts(0)
    late = GRPO(anchor=Anchor(weight=Schedule("linear", 0.0, 1.0, steps=10)))
    assert late.components(0) == ("rl",)
    assert late.components(5) == ("rl", "adv")
    assert "adv" not in GRPO(anchor=Anchor(weight=1.0, mode="reward")).components(0)


def test_targets_are_the_next_tokens_of_the_same_sequence():
    made = sequences(11, 5)
    (batch,) = pack(made, 10_000)
    bounds = batch.cu_seqlens.tolist()
    for s, a, b in zip(made, bounds[:-1], bounds[1:], strict=True):
        whole = torch.cat([s.prompt, s.response])
        assert torch.equal(batch.token_T[a:b], whole)
        assert torch.equal(batch.target_T[a : b - 1], whole[1:])
        assert batch.target_T[b - 1] == 0
        assert torch.equal(batch.position_T[a:b], torch.arange(b - a))
    for s, got in zip(made, batch.responses(batch.target_T), strict=True):
        assert torch.equal(got, s.response)


@given(lengths=st.lists(st.integers(1, 30), max_size=30), budget=st.integers(1, 40))
def test_runs_are_consecutive_and_within_the_budget(lengths, budget):
    runs = split_by_tokens(lengths, budget)
    assert [i for run in runs for i in run] == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in run) for run in runs]
    assert all(total <= budget or len(run) == 1 for total, run in zip(totals, runs, strict=True))
    for total, after in itertools.pairwise(zip(totals, runs, strict=True)):
        assert total[0] + lengths[after[1][0]] > budget, "a run ends only when the next sequence does not fit"


def test_a_component_with_weight_but_no_signal_is_refused():
    s = Sequence(torch.tensor([1]), torch.tensor([2, 3]), "rollout")
    with pytest.raises(ValueError, match="advantage_T: expected values"):
        pack([s], 10, GRPO())


def test_counts_add_up_over_ranks():
    made = sequences(5, 9, "mixed")
    parts = BatchCounts.of(made[::2]).vector() + BatchCounts.of(made[1::2]).vector()
    assert BatchCounts.from_vector(parts) == BatchCounts.of(made)


@pytest.mark.parametrize(
    ("kind", "step", "value"),
    [
        ("constant", 0, 0.0), ("constant", 3, 3 / 2), ("constant", 4, 2.0), ("constant", 99, 2.0),
        ("linear", 4, 2.0), ("linear", 9, 1.5), ("linear", 14, 1.0), ("linear", 99, 1.0),
        ("cosine", 4, 2.0), ("cosine", 9, 1.5), ("cosine", 14, 1.0),
    ],
)  # fmt: skip
def test_schedules(kind, step, value):
    assert Schedule(kind, start=2.0, end=1.0, steps=10, warmup=4).at(step) == pytest.approx(value)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GRPO(group_size=1), "group_size"),
        (lambda: GRPO(group_size=2.5), "group_size"),
        (lambda: GRPO(delta=float("inf")), "delta"),
        (lambda: Anchor(span="ab"), "span"),
        (lambda: GRPO(clip_low=1.0), "clip_low"),
        (lambda: GRPO(beta=float("nan")), "beta"),
        (lambda: GRPO(aggregation="mean"), "aggregation"),
        (lambda: GRPO(aggregation="dr_grpo"), "max_response_length"),
        (lambda: GRPO(max_response_length=8), "max_response_length"),
        (lambda: SFT(anchor=Anchor(mode="reward")), "anchor.mode"),
        (lambda: Anchor(weight=-0.1), "weight"),
        (lambda: Anchor(weight=float("inf")), "weight"),
        (lambda: Anchor(weight=Schedule("linear", 1.0, -1.0, 5)), "weight"),
        (lambda: Anchor(clip=0), "clip"),
        (lambda: Anchor(discount=0), "discount"),
        (lambda: Anchor(credit="token"), "credit"),
        (lambda: Schedule("square"), "kind"),
        (lambda: Schedule("linear", 0.0, 1.0), "steps"),
    ],
)
def test_wrong_hyperparameters_are_named(make, field):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        make()


def test_a_micro_batch_of_experts_alone_has_the_signals_of_the_others():
    """A loss of one's own may look at them, and the cut into micro-batches must not show."""
    made = sequences(3, 6, "mixed")
    for sequence in made:
        if sequence.role == "rollout":
            sequence.advantage = torch.ones(len(sequence.response), dtype=torch.float64)
    for batch in pack(made, 1, GRPO()):
        assert batch.advantage_T is not None
        assert batch.advantage_T.dtype == torch.float64
        assert batch.old_logprob_T is None or any(s.old_logprob is not None for s in made)


def test_weights_of_no_component_are_refused():
    class Typo(GRPO):
        def weights(self, sequence, counts, step):
            return {"custm": 1.0}

    class Unknown(GRPO):
        def components(self, step):
            return ("entropy",)

    with pytest.raises(ValueError, match=r"^Typo\.weights: expected weights of rl, got 'custm'"):
        pack(sequences(1, 3), 100, Typo())
    with pytest.raises(ValueError, match=r"^Unknown\.components: expected some of rl, kl, sft, adv, custom, got"):
        pack(sequences(1, 3), 100, Unknown())
