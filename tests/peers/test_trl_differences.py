"""Where `GRPO` differs from TRL 1.16, and by exactly how much (docs/objectives.md, "Where we differ")."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aapa import GRPO
from aapa.batch import BatchCounts

sys.path.insert(0, str(Path(__file__).parent))
from trl_grpo import (
    GROUP,
    MAX_LENGTH,
    Rollouts,
    build_trainer,
    check_equal,
    generate,
    ours,
    sequences_of,
    theirs,
    trl_settings,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("needs_trl"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about TRL's use of it
]

LOSSES = ("dapo", "grpo", "dr_grpo", "cispo")


def objective(loss: str, **changes: object) -> GRPO:
    fields = {"group_size": GROUP, "clip_low": 0.1, "clip_high": 0.15, "epochs_per_rollout": 2, "beta": 0.1}
    fields |= {"surrogate": "cispo", "clip_low": 1.0} if loss == "cispo" else {"aggregation": loss}
    fields |= {"max_response_length": MAX_LENGTH} if loss == "dr_grpo" else {}
    return GRPO(**(fields | changes))


@pytest.mark.parametrize("loss", LOSSES)
def test_truncated_rollouts_count_in_trls_denominators_only(model_directory: Path, loss: str) -> None:
    """Two of eight are masked. TRL's means over rollouts are over all eight, ours over the six that train."""
    chosen = objective(loss, mask_truncated=True)
    rollouts = Rollouts()
    assert rollouts.finished.count(False) == 2
    trainer = build_trainer(model_directory, rollouts, **trl_settings(chosen))
    batch = generate(trainer)
    masked = [not finished for finished in rollouts.finished]
    mine = ours(trainer, sequences_of(rollouts, batch, chosen, masked), chosen)
    check_equal(mine, theirs(trainer, [batch]), factor=8 / 6 if loss in ("grpo", "dr_grpo") else 1.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_rollouts_without_a_reward_stay_in_trls_loss(model_directory: Path, loss: str) -> None:
    """TRL gives them an advantage of 0: they have a KL term and count in denominators. Ours are masked."""
    rewards: list[float | None] = [1.0, None, 0.5, 0.1, 0.0, 1.0, 0.25, 0.75]
    unscored = [reward is None for reward in rewards]
    rollouts = Rollouts(rewards=rewards)
    chosen = objective(loss)
    trainer = build_trainer(model_directory, rollouts, **trl_settings(chosen))
    batch = generate(trainer)
    assert float(batch["advantages"][1]) == 0
    kept = sequences_of(rollouts, batch, chosen)
    check_equal(ours(trainer, kept, chosen), theirs(trainer, [batch]))
    # Without the KL term the masked rollout changes nothing but the denominators.
    chosen = objective(loss, beta=0.0)
    trainer = build_trainer(model_directory, rollouts, **trl_settings(chosen))
    batch = generate(trainer)
    masked = sequences_of(rollouts, batch, chosen, unscored)
    every, trained = BatchCounts.of(kept), BatchCounts.of(masked)
    by_tokens = loss in ("dapo", "cispo")
    factor = every.rollout_tokens / trained.rollout_tokens if by_tokens else every.rollouts / trained.rollouts
    assert factor > 1.1
    check_equal(ours(trainer, masked, chosen), theirs(trainer, [batch]), factor=factor)


@pytest.mark.parametrize("loss", LOSSES)
def test_several_updates_share_a_denominator_in_trl(model_directory: Path, loss: str) -> None:
    """Two updates per batch of rollouts: TRL divides each by half of all tokens, we by the tokens of the update."""
    from trl.trainer.utils import split_tensor_dict

    chosen = objective(loss, updates_per_rollout=2, epochs_per_rollout=1)
    rollouts = Rollouts()
    settings = trl_settings(chosen) | {"per_device_train_batch_size": GROUP, "steps_per_generation": 2}
    trainer = build_trainer(model_directory, rollouts, **settings)
    batch = generate(trainer)
    assert "old_per_token_logps" in batch
    sequences, parts = sequences_of(rollouts, batch, chosen), split_tensor_dict(batch, 2)
    everything = BatchCounts.of(sequences).rollout_tokens
    for index, part in enumerate(parts):
        half = sequences[index * GROUP : (index + 1) * GROUP]
        tokens = BatchCounts.of(half).rollout_tokens
        factor = everything / 2 / tokens if loss in ("dapo", "cispo") else 1.0
        assert loss in ("grpo", "dr_grpo") or abs(factor - 1) > 0.1
        check_equal(ours(trainer, half, chosen), theirs(trainer, [part]), factor=factor)
