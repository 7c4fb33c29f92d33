"""Dynamic sampling: which groups make the batch, for one replica and for several."""

from __future__ import annotations

import math
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from aapa import GRPO, Anchor, Schedule
from aapa.engine.data import Sampler, TokenizedExample
from aapa.engine.examples import Example
from aapa.engine.rewards import FailureWindow, LocalReward, Rewards
from aapa.engine.rollout import Rollout, sample_seed
from aapa.engine.run import StageRun
from aapa.engine.sampling import RolloutBatch, sample_batch

SIZE, WANTED = 23, 4


class Replicas:
    """Data-parallel replicas as threads that meet at every gather."""

    def __init__(self, count: int) -> None:
        self.count, self.parts = count, [None] * count
        self.barrier = threading.Barrier(count, timeout=30)

    def gather(self, rank: int, value: object) -> list:
        self.parts[rank] = value
        self.barrier.wait()
        found = list(self.parts)
        self.barrier.wait()
        return found


def rewards_of(index: int) -> list[float]:
    """Groups of equal rewards for every example that 3 does not divide; one of these has a masked sample."""
    if index % 3 == 0:
        return [1.0, 0.0]
    return [1.0, math.nan] if index == 4 else [1.0, 1.0]


def batch_of(objective: GRPO, step: int = 0, replicas: int = 1, drawn: list[int] | None = None) -> list[RolloutBatch]:
    """The batch of each replica; a rollout's response is (example, seed), so that every sample can be told apart."""
    group = Replicas(replicas)
    data = [TokenizedExample(Example(i, str(i), ("e",), {}), [i], ([1],)) for i in range(SIZE)]
    main = Sampler(SIZE, 7, "rl")
    drawn = main.batch(step, WANTED) if drawn is None else drawn
    results: dict[int, RolloutBatch] = {}

    def replica(rank: int) -> None:
        parallel = SimpleNamespace(
            is_leader=True,
            from_leader=lambda value: value,
            gather_over_data=lambda value: group.gather(rank, value),
        )

        def generate(prompts, seeds, max_new_tokens, temperature):
            return [Rollout(p, [p[0], s], True, torch.zeros(2)) for p, s in zip(prompts, seeds, strict=True)]

        def score(prompts, completions, **columns):
            seen: Counter[str] = Counter()
            found = []
            for prompt in prompts:
                found.append(rewards_of(int(prompt))[seen[prompt] % 2])
                seen[prompt] += 1
            return [None if math.isnan(value) else value for value in found]

        run = SimpleNamespace(
            parallel=parallel,
            mine=lambda items: items[rank::replicas],
            generate=generate,
            text=str,
            recipe=SimpleNamespace(seed=3, rollout=SimpleNamespace(max_new_tokens=4, temperature=1.0)),
        )
        stage = StageRun(
            index=0,
            table=SimpleNamespace(objective=objective, name="rl", steps=9),
            data=data,
            sampler=main,
            refills=Sampler(SIZE, 7, "rl/refills"),
            experts=main,
            rewards=Rewards(((LocalReward("aapa.tests:score", score, "rewards"), 1.0),)),
            reference=None,
            scorer=None,
            failures=FailureWindow(200, 0.05),
        )
        results[rank] = sample_batch(run, stage, step, drawn)

    threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(replicas)]


def indices(batch: RolloutBatch) -> list[int]:
    return [example.example.id for example in batch.examples[::2]]


def draws(step: int, rounds: int) -> list[int]:
    """Every example that a step may see, in the order of its draws."""
    found = Sampler(SIZE, 7, "rl").batch(step, WANTED)
    for index in range(1, rounds):
        found += Sampler(SIZE, 7, "rl/refills").batch(step * (rounds - 1) + index - 1, WANTED)
    return found


@pytest.mark.parametrize("step", [0, 1, 5])
@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_the_first_informative_groups_in_the_order_of_draws_make_the_batch(step, rounds):
    (batch,) = batch_of(GRPO(group_size=2, dynamic_sampling="auto", dynamic_sampling_rounds=rounds), step)
    seen = draws(step, rounds)
    used = next(
        (n for n in range(1, rounds) if sum(i % 3 == 0 for i in seen[: n * WANTED]) >= WANTED), rounds
    )  # rounds that it takes
    seen = seen[: used * WANTED]
    good = [place for place, index in enumerate(seen) if index % 3 == 0]
    rest = [place for place, index in enumerate(seen) if index % 3]
    assert indices(batch) == [seen[place] for place in sorted([*good, *rest][:WANTED])]
    assert batch.sampling == {
        "sampling/rounds": used,
        "sampling/groups": len(seen),
        "sampling/zero_variance": len(rest) / len(seen),
    }
    assert batch.groups == [0, 0, 1, 1, 2, 2, 3, 3]
    for example, reward in zip(
        batch.examples[::2], zip(batch.rewards[::2], batch.rewards[1::2], strict=True), strict=True
    ):
        assert repr(list(reward)) == repr(rewards_of(example.example.id))


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_batch_of_one(replicas):
    objective = GRPO(group_size=2, dynamic_sampling="auto", dynamic_sampling_rounds=5)
    (whole,) = batch_of(objective, step=2)
    parts = batch_of(objective, step=2, replicas=replicas)
    together = [None] * WANTED
    for rank, part in enumerate(parts):
        assert part.sampling == whole.sampling
        together[rank::replicas] = [tuple(r.response) for r in part.rollouts[::2]]
    assert together == [tuple(r.response) for r in whole.rollouts[::2]]


def test_an_example_drawn_again_gets_samples_of_its_own():
    (batch,) = batch_of(GRPO(group_size=2), drawn=[5, 5, 6, 5])
    seeds = [rollout.response[1] for rollout in batch.rollouts]
    assert len(set(seeds)) == 8
    assert seeds[:4] == [sample_seed(3, "rl", 0, 5, sample) for sample in range(4)]


@pytest.mark.parametrize(
    ("anchor", "acts"),
    [
        (None, True),
        (Anchor(weight=0.0), True),
        (Anchor(weight=0.5), False),  # such a group still has its anchor term
        (Anchor(weight=0.5, mode="reward"), True),  # the variance is that of the verifiable reward
        (Anchor(weight=Schedule("linear", start=0.0, end=1.0, steps=10)), True),
    ],
)
def test_auto_acts_only_where_the_anchor_has_no_term_of_its_own(anchor, acts):
    (batch,) = batch_of(GRPO(group_size=2, dynamic_sampling="auto", anchor=anchor))
    assert bool(batch.sampling) == acts
    (plain,) = batch_of(GRPO(group_size=2, anchor=anchor))
    assert not plain.sampling
    assert indices(plain) == draws(0, 1)
