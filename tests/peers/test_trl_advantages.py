"""Rewards and group advantages against TRL's own `_generate_and_score_completions`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aapa.kernels import anchor_advantages
from aapa.shaping import overlong_penalty

sys.path.insert(0, str(Path(__file__).parent))
from trl_grpo import GROUP, Rollouts, build_trainer, generate

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("needs_trl"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about TRL's use of it
]

SCALES = ("group", "batch", "none")
REWARDS: dict[str, list[float | None]] = {
    "plain": [1.0, 0.0, 0.5, 0.1, 0.0, 1.0, 0.25, 0.75],
    "far-apart": [1000.0, -3.0, 0.5, 1e-3, 7.0, 7.5, 7.0, 7.25],
    "two-levels": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0],
    "one-masked": [1.0, None, 0.5, 0.1, 0.0, 1.0, 0.25, 0.75],
    "some-masked": [1.0, None, None, 0.25, None, 1.0, 0.25, None],
    "a-single-one-left": [1.0, None, None, None, 0.0, 1.0, 0.25, 0.75],
    "a-group-masked": [None, None, None, None, 0.0, 1.0, 0.25, 0.75],
    "everything-masked": [None] * 8,
    "no-variance-in-a-group": [0.5, 0.5, 0.5, 0.5, 0.0, 1.0, 0.25, 0.75],
    "no-variance-at-all": [0.25] * 8,
    "no-variance-beside-masked": [0.5, 0.5, None, 0.5, 0.0, 1.0, None, 0.75],
}


def trl_advantages(directory: Path, rewards: list[float | None], scale: str, **settings: Any) -> Tensor:
    """[N] of TRL's batch."""
    trainer = build_trainer(directory, Rollouts(rewards=rewards), scale_rewards=scale, **settings)
    return generate(trainer)["advantages"].double()


def our_advantages(rewards: list[float | None], scale: str, group: int = GROUP) -> Tensor:
    """[N] of responses of one token and one sentence each."""
    offsets = torch.arange(len(rewards) + 1, dtype=torch.int32)
    reward_N = torch.tensor([float("nan") if reward is None else reward for reward in rewards], dtype=torch.float64)
    group_N = torch.arange(len(rewards)) // group
    score_S = torch.zeros(len(rewards), dtype=torch.float64)
    return anchor_advantages(score_S, reward_N, offsets, offsets, group_N, mean=0.0, std=1.0, scale=scale)[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", REWARDS)
def test_advantages(model_directory: Path, name: str, scale: str) -> None:
    trl, mine = trl_advantages(model_directory, REWARDS[name], scale), our_advantages(REWARDS[name], scale)
    assert bool(mine.isfinite().all())
    # TRL computes in float32.
    torch.testing.assert_close(mine, trl, rtol=1e-6, atol=1e-6 * max(1.0, float(trl.abs().max())))
    masked = torch.tensor([reward is None for reward in REWARDS[name]])
    assert bool((mine[masked] == 0).all())


def test_another_scale_is_seen(model_directory: Path) -> None:
    for theirs, ours in (("group", "batch"), ("batch", "none"), ("none", "group")):
        trl, mine = trl_advantages(model_directory, REWARDS["plain"], theirs), our_advantages(REWARDS["plain"], ours)
        assert float((trl - mine).abs().max()) > 1e-2


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7])
def test_equal_rewards_that_float32_cannot_hold(model_directory: Path, reward: float) -> None:
    """A difference: ours are exactly 0, TRL's what rounding leaves of (reward - mean), over 1e-4."""
    rewards: list[float | None] = [reward] * 8
    trl = trl_advantages(model_directory, rewards, "group", num_generations=8)
    assert our_advantages(rewards, "group", group=8).tolist() == [0.0] * 8
    # How much is left depends on the order of torch's sum on this machine, and may be nothing.
    assert float(trl.abs().max()) <= torch.finfo(torch.float32).eps * reward / 1e-4


def test_standard_deviation() -> None:
    """TRL's helper is the one that the group's advantages divide by."""
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([[1.0, 0.0, float("nan"), 0.25], [3.0, 3.0, 3.0, 3.5]], dtype=torch.float64)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    expected = (centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)).nan_to_num(nan=0.0).flatten()
    mine = our_advantages([None if value != value else value for value in rewards.flatten().tolist()], "group")
    # The helper divides two counts, which torch does in float32 whatever the rewards are.
    torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("buffer", [1, 4, 10])
def test_overlong_penalty(buffer: int) -> None:
    """TRL's soft punishment is a reward function; its penalty at the limit is 1."""
    from trl.rewards import get_soft_overlong_punishment

    limit, lengths = 10, range(1, 13)
    punish = get_soft_overlong_punishment(max_completion_len=limit, soft_punish_cache=buffer)
    expected = punish(completion_ids=[[0] * length for length in lengths])
    assert [overlong_penalty(length, limit, buffer, 1.0) for length in lengths] == pytest.approx(expected, abs=1e-12)
