"""From rollouts, rewards and scores to sequences: against the formulas in plain Python."""

from __future__ import annotations

import itertools
import math
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

from aapa import GRPO, SFT, Anchor
from aapa.engine.data import TokenizedExample
from aapa.engine.examples import Example
from aapa.engine.rollout import Rollout
from aapa.engine.sampling import RolloutBatch
from aapa.engine.scoring import Scores, SentenceScorer
from aapa.engine.step import _minibatches, advantages, learning_rate_at

LENGTHS = [[2, 3], [4], [1, 1, 2], [3, 2], [2], [5, 1]]  # sentence lengths of six rollouts
GROUPS = [0, 0, 0, 1, 1, 1]
REWARDS = [1.0, 0.0, 1.0, 0.5, math.nan, 0.0]
SCORES = [[0.4, -1.0], [2.0], [9.0, 0.0, -0.5], [1.0, 0.2], [0.3], [-0.6, 0.8]]
ANCHORED = [True, True, True, True, False, True]
MEAN, STD = 0.1, 0.5


def batch() -> RolloutBatch:
    def rollout(lengths: list[int]) -> Rollout:
        size = sum(lengths)
        return Rollout([5, 6], list(range(10, 10 + size)), True, torch.zeros(size))

    scores = Scores(
        score_S=torch.tensor([s for row in SCORES for s in row]),
        cu_sents=[torch.tensor([0, *torch.tensor(row).cumsum(0).tolist()], dtype=torch.int32) for row in LENGTHS],
        kept=[torch.ones(len(row), dtype=torch.bool) for row in LENGTHS],
        anchored=ANCHORED,
        mean=MEAN,
        std=STD,
    )
    return RolloutBatch([], [rollout(row) for row in LENGTHS], GROUPS, REWARDS, scores)


def calibrated(clip: float) -> list[list[float]]:
    return [[min(max((s - MEAN) / STD, -clip), clip) for s in row] for row in SCORES]


def expected_advantages(rewards: list[float], scale: str) -> list[float]:
    found = []
    known = [r for r in rewards if not math.isnan(r)]
    for i, reward in enumerate(rewards):
        group = [r for r, g in zip(rewards, GROUPS, strict=True) if g == GROUPS[i] and not math.isnan(r)]
        spread = {"group": stdev(group) + 1e-4, "batch": stdev(known) + 1e-4, "none": 1.0}[scale]
        found.append(0.0 if math.isnan(reward) else (reward - mean(group)) / spread)
    return found


def expected_anchor(aggregation: str, clip: float, credit: str) -> list[list[float]]:
    """a_k - b_i by sentence (3.1), (3.2): b_i over the other anchored rollouts of the group."""
    scores, found = calibrated(clip), []
    for i, row in enumerate(scores):
        others = [j for j in range(6) if j != i and GROUPS[j] == GROUPS[i] and ANCHORED[j]]
        if aggregation == "grpo":
            means = [sum(a * n for a, n in zip(scores[j], LENGTHS[j], strict=True)) / sum(LENGTHS[j]) for j in others]
            baseline = mean(means)
        else:
            weighted = [(a, n) for j in others for a, n in zip(scores[j], LENGTHS[j], strict=True)]
            baseline = sum(a * n for a, n in weighted) / sum(n for _, n in weighted)
        centred = [a - baseline for a in row]
        if credit == "return":
            centred = [sum(0.5 ** (m - k) * centred[m] for m in range(k, len(row))) for k in range(len(row))]
        found.append([value if ANCHORED[i] else 0.0 for value in centred])
    return found


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize(("clip", "credit"), [(3.0, "sentence"), (1.5, "return")])
def test_sequences_carry_the_advantages_of_the_formulas(scale, aggregation, clip, credit):
    objective = GRPO(
        scale=scale,
        aggregation=aggregation,
        max_response_length=16 if aggregation == "dr_grpo" else None,
        anchor=Anchor(weight=0.7, clip=clip, credit=credit, discount=0.5 if credit == "return" else 1.0),
    )
    made = advantages(batch(), objective, 0, temperature=0.8, max_length=16)
    rl = expected_advantages(REWARDS, scale)
    anchor = expected_anchor(aggregation, clip, credit)
    for i, sequence in enumerate(made):
        size = sum(LENGTHS[i])
        per_token = [value for value, n in zip(anchor[i], LENGTHS[i], strict=True) for _ in range(n)]
        torch.testing.assert_close(sequence.advantage, torch.full((size,), rl[i]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sequence.anchor_advantage, torch.tensor(per_token), rtol=1e-5, atol=1e-6)
        assert sequence.temperature == 0.8
        assert sequence.anchored == ANCHORED[i]
        assert sequence.tokens == (0 if math.isnan(REWARDS[i]) else size)
        assert sequence.prompt.tolist() == [5, 6]
        assert sequence.response.tolist() == list(range(10, 10 + size))


def test_reward_mode_adds_the_mean_anchor_before_the_groups_are_normalised():
    objective = GRPO(anchor=Anchor(weight=0.7, mode="reward"))
    scores = calibrated(3.0)
    shaped = [
        reward + (0.7 * mean(row) if anchored else 0.0)
        for reward, row, anchored in zip(REWARDS, scores, ANCHORED, strict=True)
    ]
    made = advantages(batch(), objective, 0, temperature=1.0, max_length=16)
    for sequence, value in zip(made, expected_advantages(shaped, "group"), strict=True):
        torch.testing.assert_close(sequence.advantage, torch.full_like(sequence.advantage, value), rtol=1e-5, atol=1e-6)
        assert not sequence.anchored
        assert not sequence.anchor_advantage.any()


def test_without_scores_nothing_is_anchored():
    bare = batch()
    bare.scores = None
    for objective in (GRPO(), SFT()):
        assert not any(s.anchored or s.anchor_advantage.any() for s in advantages(bare, objective, 0, 1.0, 16))


class StubTrunk:
    """A sentence's state is the mean of its token ids."""

    hidden_size, hash = 1, "trunk"

    def read(self, prompts, responses, cu_sents, temperature=None):
        rows = [
            [sum(r[a:b]) / (b - a)] for r, cu in zip(responses, cu_sents, strict=True) for a, b in _pairs(cu.tolist())
        ]
        return torch.tensor(rows, dtype=torch.float32).view(-1, 1), None


def _pairs(offsets: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(offsets))


def test_every_prompts_responses_meet_its_own_experts(monkeypatch):
    """The stub discriminator subtracts the mean of the group's expert sentences."""

    class Difference:
        granularity, mean, std, hash = "response", 0.0, 1.0, "d"
        origin = SimpleNamespace(trunk="trunk")

        def score(self, sentence_SD, cu_group, expert_ED, cu_expert):
            parts = [
                sentence_SD[a:b, 0] - expert_ED[c:d, 0].mean()
                for (a, b), (c, d) in zip(_pairs(cu_group.tolist()), _pairs(cu_expert.tolist()), strict=True)
            ]
            return torch.cat(parts)

    class Cache:
        def add(self, examples, on_progress=None):
            self.states = [torch.tensor([[sum(expert) / len(expert)]]) for _, expert in examples.values()]

        def pack(self, ids):
            return torch.cat([self.states[i] for i in ids]), torch.arange(len(ids) + 1)

    examples = [TokenizedExample(Example(i, "p", ("e",), {}), [1], ([100 * i + 100],)) for i in range(2)]
    monkeypatch.setattr("aapa.sentences.segment", lambda tokens, cu, table, granularity: torch.unique_consecutive(cu))
    scorer = SentenceScorer(Difference(), StubTrunk(), table=None, experts=Cache())
    scores = scorer.score([examples[0], examples[0], examples[1]], [[3], [5, 7], [11]])
    assert scores.score_S.tolist() == [3 - 100, 6 - 100, 11 - 200]
    assert scores.anchored == [True, True, True]


def test_a_discriminator_of_another_trunk_is_refused():
    other = SimpleNamespace(origin=SimpleNamespace(trunk="another"))
    with pytest.raises(ValueError, match=r"discriminator\.trunk: expected"):
        SentenceScorer(other, StubTrunk(), table=None, experts=None)


def test_learning_rate_warms_up_and_decays():
    table = SimpleNamespace(decay="linear", learning_rate=1.0, final_learning_rate_ratio=0.1, steps=12, warmup_steps=2)
    rates = [learning_rate_at(SimpleNamespace(table=table), step) for step in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.55, 0.1])


def test_minibatches_cover_everything_once_in_order_and_mix_experts_with_rollouts():
    made = [SimpleNamespace(role="expert", n=n) for n in range(4)] + [
        SimpleNamespace(role="rollout", n=n) for n in range(7)
    ]
    parts = [[(s.role[0], s.n) for s in part] for part in _minibatches(made, 3)]
    assert parts == [
        [("e", 0), ("e", 1), ("r", 0), ("r", 1), ("r", 2)],
        [("e", 2), ("r", 3), ("r", 4)],
        [("e", 3), ("r", 5), ("r", 6)],
    ]
