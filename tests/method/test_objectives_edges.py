"""From rewards and scores to the loss, where groups, prompts or responses have nothing to give."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aapa import CHORD, GRPO, Anchor, Objective
from aapa.batch import Sequence
from aapa.kernels import anchor_advantages, policy_loss
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
from straight_line import anchor_values, group_advantages, loss_of, random_logprobs

MEAN, STD, CLIP = 0.2, 0.7, 1.5
NAN = math.nan
# Lengths of the sentences of each response, and their groups; the last two prompts have a single rollout each.
LENGTHS = [[2, 3], [1], [4, 1, 1], [], [3], [1], [2, 2], [1], [5], [1]]
GROUPS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 3]
ANCHORED = [True, True, True, True, True, True, False, True, False, True]


def scores(seed: int) -> list[list[float]]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(len(row), generator=g, dtype=torch.float64).tolist() for row in LENGTHS]


def advantages(rewards: list[float], seed: int, anchored: list[bool], **fields: Any) -> tuple[Tensor, Tensor]:
    """Of all tokens, by the kernel."""
    lengths = [length for row in LENGTHS for length in row]
    return anchor_advantages(
        torch.tensor([score for row in scores(seed) for score in row], dtype=torch.float64),
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int32),
        torch.tensor(list(itertools.accumulate(map(sum, LENGTHS), initial=0)), dtype=torch.int32),
        torch.tensor(GROUPS),
        mean=MEAN,
        std=STD,
        clip=CLIP,
        anchored_N=torch.tensor(anchored),
        **fields,
    )


def literal_advantages(
    rewards: list[float], seed: int, anchored: list[bool], aggregation: str, scale: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The same of each response, from the formulas."""
    spoken = [[yes] * len(row) for row, yes in zip(LENGTHS, anchored, strict=True)]
    rl = group_advantages(rewards, GROUPS, scale)
    anchor = anchor_values(
        scores(seed), LENGTHS, GROUPS, spoken,
        mean=MEAN, std=STD, clip=CLIP, aggregation=aggregation, credit="sentence", discount=1.0,
    )  # fmt: skip
    whole = [torch.full((sum(row),), value, dtype=torch.float64) for row, value in zip(LENGTHS, rl, strict=True)]
    return whole, [torch.tensor(row, dtype=torch.float64) for row in anchor]


def sequences_of(
    rewards: list[float], anchored: list[bool], rl: list[Tensor], anchor: list[Tensor], logprobs: list[Tensor]
) -> list[Sequence]:
    """Rollouts as the engine makes them: a response without a reward is masked."""
    g = torch.Generator().manual_seed(99)
    return [
        Sequence(
            prompt=torch.tensor([1, 2][: 1 + index % 2]),
            response=torch.zeros(len(advantage), dtype=torch.long),
            role="rollout",
            mask=torch.zeros(len(advantage), dtype=torch.bool) if math.isnan(rewards[index]) else None,
            advantage=advantage,
            anchor_advantage=value,
            old_logprob=logprob + 0.3 * torch.randn(len(logprob), generator=g, dtype=torch.float64),
            ref_logprob=logprob + 0.3 * torch.randn(len(logprob), generator=g, dtype=torch.float64),
            anchored=anchored[index],
        )
        for index, (advantage, value, logprob) in enumerate(zip(rl, anchor, logprobs, strict=True))
    ]


def packed(
    sequences: list[Sequence], logprobs: list[Tensor], objective: Objective
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Loss, gradients by response and metrics of one micro-batch."""
    (batch,) = pack(sequences, 10_000, objective)
    logprob_T = torch.full(batch.token_T.shape, -1.5, dtype=torch.float64)
    for place, logprob in zip(batch.responses(logprob_T), logprobs, strict=True):
        place.copy_(logprob)
    logprob_T.requires_grad_()
    loss, metrics = policy_loss(logprob_T, None, *objective.lower(batch))
    (grad_T,) = torch.autograd.grad(loss, logprob_T)
    return loss.detach(), batch.responses(grad_T), metrics


def check(
    rewards: list[float], objective: GRPO, anchored: list[bool] = ANCHORED, seed: int = 7
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Kernels from end to end against the formulas from end to end."""
    kinds = {"aggregation": objective.aggregation, "scale": objective.scale}
    sizes = [sum(row) for row in LENGTHS]
    ours = [list(values_T.split(sizes)) for values_T in advantages(rewards, seed, anchored, **kinds)]
    wanted = literal_advantages(rewards, seed, anchored, **kinds)
    for made, literal in zip(ours, wanted, strict=True):
        for a, b in zip(made, literal, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    g = torch.Generator().manual_seed(seed)
    logprobs = [-torch.rand(size, generator=g, dtype=torch.float64) for size in sizes]
    sequences = sequences_of(rewards, anchored, *ours, logprobs)
    leaves = [logprob.clone().requires_grad_() for logprob in logprobs]
    literal_loss = loss_of(sequences_of(rewards, anchored, *wanted, logprobs), leaves, objective)
    literal_grads = torch.autograd.grad(literal_loss, leaves)
    loss, grads, metrics = packed(sequences, logprobs, objective)
    assert math.isfinite(float(loss))
    torch.testing.assert_close(loss, literal_loss.detach(), rtol=1e-10, atol=1e-12)
    for a, b in zip(grads, literal_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    return loss, grads, metrics


OBJECTIVES = {
    "grpo": GRPO(anchor=Anchor(weight=0.3)),
    "per sequence": GRPO(anchor=Anchor(weight=0.3), aggregation="grpo", scale="batch"),
    "dr_grpo": GRPO(anchor=Anchor(weight=0.3), aggregation="dr_grpo", max_response_length=9, scale="none"),
    "gspo": GRPO(anchor=Anchor(weight=0.3), aggregation="grpo", ratio_level="sequence"),
    "kl": GRPO(anchor=Anchor(weight=0.3), beta=0.1),
    "chord": CHORD(anchor=Anchor(weight=0.3), beta=0.1, mu=0.4),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rewards", [
    [1.0, 0.0, 1.0, 0.5, 0.3, 0.1, 0.0, 2.0, 1.0, 0.0],
    [1.0, NAN, 1.0, 0.5, NAN, NAN, 0.2, NAN, 1.0, NAN],
    [NAN, NAN, NAN, NAN, 0.2, 0.1, 0.5, 0.2, NAN, 1.0],
    [0.1] * 10,
], ids=["rewards", "some masked", "groups masked", "equal"])  # fmt: skip
def test_from_rewards_to_the_loss(rewards: list[float], name: str) -> None:
    check(rewards, OBJECTIVES[name])


@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -7.3, 1e6 + 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_no_advantage_at_all(reward: float, dtype: torch.dtype, scale: str) -> None:
    """Exactly 0, for 1e-4 below the line lets what is left by rounding grow."""
    for size in (1, 2, 3, 7, 8, 13):
        offsets = torch.arange(size + 1)
        advantage_T, _ = anchor_advantages(
            torch.zeros(size, dtype=dtype), torch.full((size,), reward, dtype=dtype), offsets, offsets,
            torch.zeros(size, dtype=torch.long), mean=0.0, std=1.0, scale=scale,  # type: ignore[arg-type]
        )  # fmt: skip
        assert not advantage_T.any(), (size, advantage_T)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_groups_of_equal_rewards_have_their_anchor_alone(level: str) -> None:
    rewards = [0.1] * 4 + [1.0] * 4 + [0.0, 0.3]
    plain = GRPO(ratio_level=level)  # type: ignore[arg-type]
    loss, grads, _ = check(rewards, plain)
    assert float(loss) == 0.0
    assert not any(grad.any() for grad in grads)
    _, grads, metrics = check(rewards, GRPO(ratio_level=level, anchor=Anchor(weight=0.3)))  # type: ignore[arg-type]
    assert float(metrics["loss/rl"]) == 0.0
    assert all(bool(grads[i].any()) == (ANCHORED[i] and sum(LENGTHS[i]) > 0) for i in (0, 2, 3, 4, 6, 8))


def test_without_any_expert_the_anchor_is_nothing() -> None:
    rewards = [1.0, 0.0, 1.0, 0.5, 0.3, 0.1, 0.0, 2.0, 1.0, 0.0]
    nobody = [False] * len(rewards)
    loss, grads, _ = check(rewards, GRPO(), nobody)
    anchored_loss, anchored_grads, metrics = check(rewards, GRPO(anchor=Anchor(weight=0.3)), nobody)
    assert float(metrics["loss/adv"]) == 0.0
    assert torch.equal(anchored_loss, loss)
    assert all(map(torch.equal, anchored_grads, grads))


def test_one_token_responses_by_hand() -> None:
    """Two responses of one token: the whole loss fits on a line."""
    offsets = torch.tensor([0, 1, 2])
    rl_T, anchor_T = anchor_advantages(
        torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64),
        offsets, offsets, torch.zeros(2, dtype=torch.long), mean=0.0, std=1.0,
    )  # fmt: skip
    a = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert rl_T.tolist() == pytest.approx([a, -a], rel=1e-12)
    assert anchor_T.tolist() == pytest.approx([1.5, -1.5], rel=1e-12)
    made = [
        Sequence(torch.tensor([3]), torch.tensor([4]), "rollout", advantage=rl_T[i : i + 1],
                 anchor_advantage=anchor_T[i : i + 1], anchored=True,
                 old_logprob=torch.tensor([-1.0], dtype=torch.float64))
        for i in range(2)
    ]  # fmt: skip
    # Ratios 1.1, inside of the bounds, and 0.5, below them with a negative advantage: clipped to 0.8.
    logprobs = [torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64) for ratio in (1.1, 0.5)]
    loss, grads, _ = packed(made, logprobs, GRPO(anchor=Anchor(weight=0.5)))
    assert float(loss) == pytest.approx(-0.5 * (1.1 * a - 0.8 * a) - 0.25 * (1.1 * 1.5 - 0.8 * 1.5), rel=1e-12)
    assert float(grads[0]) == pytest.approx(-1.1 * (0.5 * a + 0.25 * 1.5), rel=1e-12)
    assert float(grads[1]) == 0.0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_without_weight_cannot_spoil_the_loss(level: str, surrogate: str, dtype: torch.dtype) -> None:
    """Ratios and KL estimates of masked tokens and of experts may overflow: the formula never looks at them."""
    objective = CHORD(mu=0.3, beta=0.2, ratio_level=level, surrogate=surrogate, anchor=Anchor(weight=0.3))  # type: ignore[arg-type]

    def values(*numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=dtype)

    mask = torch.tensor([True, False, True])
    made = [
        Sequence(torch.tensor([1]), torch.tensor([2, 3, 4]), "rollout", mask=mask, advantage=values(1.0, 1.0, -1.0),
                 anchor_advantage=values(0.5, 1.0, 0.5), old_logprob=values(-1.0, -5000.0, -1.2),
                 ref_logprob=values(-1.1, 5000.0, -1.0), correction=values(1.0, 1.0, 0.5), anchored=True),
        Sequence(torch.tensor([1]), torch.tensor([2, 3]), "expert"),
    ]  # fmt: skip
    logprobs = [values(-0.9, -1.0, -1.1), values(-3000.0, -0.5)]
    leaves = [logprob.double().clone().requires_grad_() for logprob in logprobs]
    wanted = loss_of(made, leaves, objective)
    wanted_grads = torch.autograd.grad(wanted, leaves)
    (batch,) = pack(made, 100, objective)
    # A prompt's own predictions are no better.
    logprob_T = torch.full(batch.token_T.shape, 4000.0, dtype=dtype)
    for place, logprob in zip(batch.responses(logprob_T), logprobs, strict=True):
        place.copy_(logprob)
    logprob_T.requires_grad_()
    loss, metrics = policy_loss(logprob_T, None, *objective.lower(batch))
    (grad_T,) = torch.autograd.grad(loss, logprob_T)
    assert all(value.isfinite() for value in metrics.values())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss.double(), wanted, rtol=tolerance, atol=tolerance)
    for a, b in zip(batch.responses(grad_T), wanted_grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [[0], [0, 0], [2]], ids=["empty", "two empty", "masked"])
@pytest.mark.parametrize("objective", [
    GRPO(beta=0.2, anchor=Anchor(weight=0.3)), GRPO(ratio_level="sequence", aggregation="grpo"), CHORD(beta=0.2),
], ids=["a-grpo", "gspo", "chord"])  # fmt: skip
def test_a_batch_without_a_single_token_has_a_loss_of_zero(objective: Objective, rows: list[int]) -> None:
    made = [
        Sequence(torch.tensor([1, 2]), torch.zeros(size, dtype=torch.long), "rollout", advantage=torch.ones(size),
                 anchor_advantage=torch.ones(size), ref_logprob=torch.ones(size), anchored=True,
                 mask=torch.zeros(size, dtype=torch.bool))
        for size in rows
    ]  # fmt: skip
    loss, grads, _ = packed(made, random_logprobs(made, 0), objective)
    assert float(loss) == 0.0
    assert not any(grad.any() for grad in grads)
