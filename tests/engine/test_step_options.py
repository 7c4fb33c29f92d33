"""Length shaping, masking of truncated rollouts, and the anchor's span, from rollouts to sequences."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest
import torch

from aapa import GRPO, SFT, Anchor
from aapa.batch import BatchCounts
from aapa.engine.rollout import Rollout
from aapa.engine.sampling import RolloutBatch
from aapa.engine.scoring import Scores
from aapa.engine.step import advantages
from aapa.packing import pack

LIMIT = 10


def batch(lengths: list[int], rewards: list[float], finished: list[bool]) -> RolloutBatch:
    rollouts = [
        Rollout([5], list(range(10, 10 + size)), ended, -torch.arange(1.0, size + 1))
        for size, ended in zip(lengths, finished, strict=True)
    ]
    return RolloutBatch([], rollouts, [0] * len(rollouts), rewards)


def test_overlong_rollouts_lose_reward_before_the_group_is_normalised():
    objective = GRPO(overlong_buffer=4, overlong_penalty=0.5)
    made = advantages(batch([3, 6, 8, 10], [1.0, 1.0, 1.0, 0.0], [True] * 4), objective, 0, 1.0, LIMIT)
    shaped = [1.0, 1.0, 1.0 - 0.25, 0.0 - 0.5]
    for sequence, value in zip(made, shaped, strict=True):
        expected = (value - mean(shaped)) / (stdev(shaped) + 1e-4)
        torch.testing.assert_close(sequence.advantage, torch.full_like(sequence.advantage, expected))


def test_truncated_rollouts_train_nothing_but_stay_in_their_group():
    rewards = [1.0, 0.0, 0.0]
    made = advantages(batch([3, 4, 10], rewards, [True, True, False]), GRPO(mask_truncated=True), 0, 1.0, LIMIT)
    assert [sequence.tokens for sequence in made] == [3, 4, 0]
    assert BatchCounts.of(made) == BatchCounts(rollouts=2, rollout_tokens=7)
    expected = (1.0 - mean(rewards)) / (stdev(rewards) + 1e-4)
    torch.testing.assert_close(made[0].advantage, torch.full((3,), expected))
    kept = advantages(batch([3, 4, 10], rewards, [True, True, False]), GRPO(), 0, 1.0, LIMIT)
    assert [sequence.tokens for sequence in kept] == [3, 4, 10]


def test_rollouts_bring_the_engines_logprobs_along():
    (one, _) = advantages(batch([3, 2], [1.0, 0.0], [True] * 2), GRPO(), 0, 1.0, LIMIT)
    assert one.rollout_logprob.tolist() == [-1.0, -2.0, -3.0]
    (packed,) = pack([one], 100, GRPO())
    assert packed.rollout_logprob_T.tolist() == [-1.0, -2.0, -3.0, 0.0]
    assert packed.sequence_T.tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("aggregation", ["dapo", "grpo"])
def test_outside_of_the_span_nothing_is_anchored_and_nothing_counts(aggregation):
    """Two rollouts: sentences of 2 and 3 tokens, the first of them not spoken of; and one of 4 tokens."""
    made = batch([5, 4], [1.0, 0.0], [True] * 2)
    made.scores = Scores(
        score_S=torch.tensor([math.nan, 1.0, -0.5]),
        cu_sents=[torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32)],
        kept=[torch.tensor([False, True]), torch.tensor([True])],
        anchored=[True, True],
        mean=0.0,
        std=1.0,
    )
    objective = GRPO(aggregation=aggregation, anchor=Anchor(weight=0.5, span=("<a>", "</a>")))
    one, other = advantages(made, objective, 0, 1.0, LIMIT)
    # Leave one out: the only other rollout's anchored tokens have one value, whatever they are weighted by.
    assert one.anchor_advantage.tolist() == [0.0, 0.0, 1.5, 1.5, 1.5]
    assert other.anchor_advantage.tolist() == [-1.5] * 4
    (packed,) = pack([one, other], 100, objective)
    weight = packed.weights["rl"][0].item()
    assert packed.weights["rl"].count_nonzero() == 9
    assert packed.weights["adv"].tolist()[:6] == [0.0, 0.0, *[pytest.approx(0.5 * weight)] * 3, 0.0]


def test_reward_mode_takes_the_mean_over_the_span():
    made = batch([5, 4], [0.0, 0.0], [True] * 2)
    made.scores = Scores(
        score_S=torch.tensor([2.9, 1.0, -0.5]),
        cu_sents=[torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32)],
        kept=[torch.tensor([False, True]), torch.tensor([True])],
        anchored=[True, True],
        mean=0.0,
        std=1.0,
    )
    objective = GRPO(scale="none", anchor=Anchor(weight=0.5, mode="reward"))
    one, other = advantages(made, objective, 0, 1.0, LIMIT)
    assert one.advantage.tolist() == pytest.approx([0.5 * (1.0 + 0.5) / 2] * 5)
    assert other.advantage.tolist() == pytest.approx([-0.5 * (1.0 + 0.5) / 2] * 4)


def test_sft_has_no_use_for_rewards():
    made = advantages(batch([2, 2], [0.0, 0.0], [True] * 2), SFT(), 0, 1.0, LIMIT)
    assert not any(sequence.advantage.any() for sequence in made)
