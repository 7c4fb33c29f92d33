"""`GRPO` against TRL's own `GRPOTrainer._compute_loss`: loss and gradient, for every option that both have."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from aapa import GRPO

sys.path.insert(0, str(Path(__file__).parent))
from trl_grpo import (
    GROUP,
    MAX_LENGTH,
    Rollouts,
    build_trainer,
    check_equal,
    generate,
    ours,
    ours_exactly,
    run_both,
    sequences_of,
    theirs,
    trl_settings,
    use_float64_head,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("needs_trl"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of transformers, about TRL's use of it
]

LOSSES = ("dapo", "grpo", "dr_grpo", "cispo")
LEVELS = ("token", "sequence")
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
# (beta, kl_correction)
KL = {"no-kl": (0.0, True), "kl-corrected": (0.1, True), "kl-plain": (0.1, False)}


def objective(loss: str, **changes: object) -> GRPO:
    """Asymmetric clipping, two passes over the rollouts, so that ratios are not 1."""
    fields = {"group_size": GROUP, "clip_low": 0.1, "clip_high": 0.15, "epochs_per_rollout": 2}
    if loss == "cispo":
        fields |= {"surrogate": "cispo", "clip_low": 1.0}
    else:
        fields |= {"aggregation": loss}
    if loss == "dr_grpo":
        fields |= {"max_response_length": MAX_LENGTH}
    return GRPO(**(fields | changes))


@pytest.mark.parametrize("tool_mask", [False, True], ids=["whole", "tool-mask"])
@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_off_policy(model_directory: Path, loss: str, level: str, kl: str, tool_mask: bool) -> None:
    beta, corrected = KL[kl]
    chosen = objective(loss, ratio_level=level, beta=beta, kl_correction=corrected)
    mine, trl = run_both(model_directory, chosen, Rollouts(tool_mask=tool_mask))
    check_equal(mine, trl)
    assert mine.metrics["max/log_ratio"] > 0.5
    if not tool_mask:
        # Clipping has happened, on both sides where there are two.
        assert mine.metrics["sum/rl_clipped_high"] > 0
        assert (mine.metrics["sum/rl_clipped_low"] > 0) == (loss != "cispo")


@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy(model_directory: Path, loss: str, level: str, kl: str) -> None:
    """One pass: neither evaluates the policy that sampled, and the ratio is 1 with the gradient of the score."""
    beta, corrected = KL[kl]
    chosen = objective(loss, ratio_level=level, beta=beta, kl_correction=corrected, epochs_per_rollout=1)
    rollouts = Rollouts()
    trainer = build_trainer(model_directory, rollouts, **trl_settings(chosen))
    batch = generate(trainer)
    assert "old_per_token_logps" not in batch
    mine, trl = ours(trainer, sequences_of(rollouts, batch, chosen), chosen), theirs(trainer, [batch])
    check_equal(mine, trl)
    assert mine.metrics["max/log_ratio"] == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES[:3])
def test_dual_clip(model_directory: Path, loss: str, level: str) -> None:
    chosen = objective(loss, ratio_level=level, delta=1.3, beta=0.1)
    mine, trl = run_both(model_directory, chosen)
    check_equal(mine, trl)
    without, _ = run_both(model_directory, dataclasses.replace(chosen, delta=None))
    assert abs(without.loss - mine.loss) > 1e-3


@pytest.mark.parametrize("kl", ["kl-corrected", "kl-plain"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_formulas_are_the_same(model_directory: Path, loss: str, level: str, kl: str) -> None:
    """Where nothing is rounded to float32, nothing differs: what the other tests allow for is not the formula."""
    beta, corrected = KL[kl]
    delta = None if loss == "cispo" else 1.3
    chosen = objective(
        loss,
        ratio_level=level,
        beta=beta,
        kl_correction=corrected,
        delta=delta,
        correction="token_truncate",
        correction_max=1.2,
    )
    rollouts = Rollouts(tool_mask=True)
    trainer = build_trainer(model_directory, rollouts, vllm=True, **trl_settings(chosen))
    use_float64_head(trainer)
    batch = generate(trainer)
    sequences = sequences_of(rollouts, batch, chosen)
    check_equal(ours_exactly(trainer, sequences, chosen, batch), theirs(trainer, [batch]), tolerance=1e-12)


@pytest.mark.parametrize("low, high", [(0.05, 0.4), (0.4, 0.05), (0.0, 0.0)])
def test_clip_bounds(model_directory: Path, low: float, high: float) -> None:
    check_equal(*run_both(model_directory, objective("dapo", clip_low=low, clip_high=high)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_importance_correction(model_directory: Path, loss: str, mode: str, level: str) -> None:
    """The sampler's log-probs differ, and one of them is not known; the KL term is not corrected."""
    chosen = objective(
        loss, ratio_level=level, correction=mode, correction_min=0.8, correction_max=1.6, beta=0.1, epochs_per_rollout=1
    )
    rollouts = Rollouts(tool_mask=True)
    trainer = build_trainer(model_directory, rollouts, vllm=True, **trl_settings(chosen))
    batch = generate(trainer)
    sequences = sequences_of(rollouts, batch, chosen)
    factors = []
    for sequence, row in zip(sequences, batch["importance_sampling_ratio"], strict=True):
        expected = row[: len(sequence.response)].double()  # [1] where the mode is of the sequence
        torch.testing.assert_close(sequence.correction, expected.expand_as(sequence.correction), rtol=1e-6, atol=1e-6)
        factors += sequence.correction.tolist()
    at_bounds = {0.8, 1.6} if mode.endswith("truncate") else {0.0}
    assert at_bounds <= {round(factor, 6) for factor in factors}
    assert len({round(factor, 6) for factor in factors}) > len(at_bounds)
    check_equal(ours(trainer, sequences, chosen), theirs(trainer, [batch]))


def test_importance_correction_without_a_lower_bound(model_directory: Path) -> None:
    """TRL's None is our 0: a ratio is never below it."""
    chosen = objective("dapo", correction="sequence_mask", correction_max=1.6)
    assert trl_settings(chosen)["vllm_importance_sampling_clip_min"] is None
    check_equal(*run_both(model_directory, chosen))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_accumulation(model_directory: Path, loss: str, level: str) -> None:
    """Two micro-batches of TRL's, and a handful of ours that are cut elsewhere."""
    from trl.trainer.utils import split_tensor_dict

    chosen = objective(loss, ratio_level=level, beta=0.1)
    rollouts = Rollouts()
    trainer = build_trainer(
        model_directory,
        rollouts,
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=2,
        **trl_settings(chosen),
    )
    batch = generate(trainer)
    trl = theirs(trainer, split_tensor_dict(batch, 2))
    check_equal(ours(trainer, sequences_of(rollouts, batch, chosen), chosen, max_tokens=25), trl)


def test_defaults_are_trls(tmp_path: Path) -> None:
    """Where both have the knob. TRL's correction is on, but only with vLLM; ours is off until asked for."""
    from trl import GRPOConfig

    config, mine = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), GRPO()
    named = trl_settings(mine)
    del named["max_completion_length"]  # it is rollout.max_new_tokens, too
    named["epsilon_high"] = None if mine.clip_high == mine.clip_low else mine.clip_high
    assert {name: getattr(config, name) for name in named} == named
    assert config.steps_per_generation == config.gradient_accumulation_steps * mine.updates_per_rollout
    assert config.vllm_importance_sampling_clip_max == mine.correction_max
    assert config.vllm_importance_sampling_clip_min is None and mine.correction_min == 0


WRONG = {
    "clip_low": {"clip_low": 0.12},
    "clip_high": {"clip_high": 0.18},
    "delta": {"delta": None},
    "surrogate": {"surrogate": "cispo", "delta": None},
    "ratio_level": {"ratio_level": "sequence"},
    "beta": {"beta": 0.11},
    "kl": {"kl": "k2"},
    "kl_correction": {"kl_correction": False},
    "aggregation": {"aggregation": "grpo"},
    "correction": {"correction": "sequence_truncate"},
    "correction_max": {"correction_max": 1.3},
    "correction_min": {"correction_min": 0.9},
}


@pytest.mark.parametrize("name", WRONG)
def test_another_value_of_an_option_is_seen(model_directory: Path, name: str) -> None:
    """The comparison can fail: with one option of ours changed, it does."""
    right = objective("dapo", delta=1.3, beta=0.1, correction="token_truncate", correction_min=0.8, correction_max=1.6)
    check_equal(*run_both(model_directory, right))
    mine, trl = run_both(model_directory, right, ours_is=dataclasses.replace(right, **WRONG[name]))
    with pytest.raises(AssertionError):
        check_equal(mine, trl)
