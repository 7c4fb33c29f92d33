"""`CHORD` against Trinity-RFT's own `chord_policy_loss`: the schedule of mu, SFT with phi, and the mixed loss.

The modules are Trinity's: chord_policy_loss, ppo_policy_loss, sft_loss, policy_loss_fn, utils and key_mapper. Only the
`__init__` files of the two packages that they lie in are replaced by empty packages, since these import ray, omegaconf
and the rest of the framework.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aapa import CHORD, SFT, Objective, Schedule
from aapa.batch import BatchCounts, Sequence
from aapa.kernels import policy_loss
from aapa.objectives import PRESETS
from aapa.packing import pack

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("needs_trinity")]

TOLERANCE = 1e-6
PACKAGES = ("trinity.algorithm", "trinity.algorithm.policy_loss_fn")
# Trinity's PPO loss has a dual clip that CHORD's options do not reach.
CLIP_RATIO_C = 3.0


@pytest.fixture(scope="module")
def chord(needs_trinity: None) -> Iterator[Any]:
    """Trinity's module."""
    found = importlib.util.find_spec("trinity")
    assert found is not None and found.submodule_search_locations is not None
    root = Path(found.submodule_search_locations[0])
    for name in PACKAGES:
        empty = types.ModuleType(name)
        empty.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = empty
    yield importlib.import_module("trinity.algorithm.policy_loss_fn.chord_policy_loss")
    for name in [name for name in sys.modules if name.startswith("trinity.algorithm")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "peak, valley, warmup, decay",
    [(0.9, 0.05, 0, 200), (0.9, 0.05, 20, 180), (0.5, 0.0, 7, 13), (0.2, 0.8, 3, 5), (1.0, 0.0, 1, 1)],
)
def test_schedule(chord: Any, peak: float, valley: float, warmup: int, decay: int) -> None:
    mine = Schedule("cosine", start=peak, end=valley, steps=decay, warmup=warmup)
    for step in range(warmup + decay + 10):
        expected = chord.mu_schedule_function(step, warmup, decay, peak, valley)
        assert mine.at(step) == pytest.approx(expected, abs=1e-12), step
    assert mine.at(warmup) == pytest.approx(peak) and mine.at(warmup + decay) == pytest.approx(valley)


def test_defaults(chord: Any) -> None:
    """Trinity's default schedule stays at its end, 0.1, from the first step; phi is on, as in ours."""
    args = chord.MIXCHORDPolicyLossFn.default_args()
    steps = [args["mu_warmup_steps"], args["mu_decay_steps"], args["mu_peak"], args["mu_valley"]]
    assert {chord.mu_schedule_function(step, *steps) for step in range(5)} == {CHORD().mu}
    assert args["enable_phi_function"] is CHORD().phi is True
    assert args["clip_range"] == CHORD().clip_low == CHORD().clip_high
    assert PRESETS["chord-phi"][1] == {"mu": CHORD().mu, "phi": True}


class Batch:
    """Ragged rollouts and experts, some tokens masked, their log-probs being what gradients are taken of.

    Ratios are clipped on both sides, and some exceed the dual clip.
    """

    def __init__(self, rollouts: int = 5, experts: int = 3) -> None:
        g = torch.Generator().manual_seed(3)
        lengths = [1 + (7 * index) % 11 for index in range(rollouts + experts)]
        self.rollouts, width = rollouts, max(lengths)
        shape = (rollouts + experts, width)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        for row, length in enumerate(lengths):
            self.mask[row, :length] = True
        self.mask[2, 1:3] = False
        self.mask[rollouts + 1, :2] = False
        self.lengths = lengths
        self.logprob = -torch.rand(shape, generator=g, dtype=torch.float64) * 3
        self.old = self.logprob + 0.7 * torch.randn(shape, generator=g, dtype=torch.float64)
        self.advantage = torch.randn((len(lengths), 1), generator=g, dtype=torch.float64).expand(shape)
        self.expert = torch.arange(len(lengths)) >= rollouts
        ratio = (self.logprob - self.old).exp()[:rollouts][self.mask[:rollouts]]
        bad = self.advantage[:rollouts][self.mask[:rollouts]] < 0
        assert bool((ratio[bad] > CLIP_RATIO_C).any()) and bool((ratio < 0.8).any())

    def sequences(self) -> list[Sequence]:
        made = []
        for row, length in enumerate(self.lengths):
            rollout = row < self.rollouts
            made.append(
                Sequence(
                    prompt=torch.arange(1 + row % 3),
                    response=torch.arange(length),
                    role="rollout" if rollout else "expert",
                    mask=self.mask[row, :length],
                    advantage=self.advantage[row, :length] if rollout else None,
                    old_logprob=self.old[row, :length] if rollout else None,
                )
            )
        return made

    def packed(self, logprob: Tensor, sequences: list[Sequence], indices: list[int]) -> Tensor:
        """[T] log-probs at the predictions of the responses."""
        parts = []
        for index in indices:
            prompt = len(sequences[index].prompt)
            parts += [logprob.new_zeros(prompt - 1), logprob[index, : self.lengths[index]], logprob.new_zeros(1)]
        return torch.cat(parts)


def ours(batch: Batch, objective: Objective, step: int = 0, max_tokens: int = 1000) -> tuple[Tensor, Tensor]:
    """(loss, gradient in the log-probs)."""
    sequences, logprob = batch.sequences(), batch.logprob.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for packed in pack(sequences, max_tokens, objective, BatchCounts.of(sequences), step):
        logprob_T = batch.packed(logprob, sequences, packed.index_N)
        loss = loss + policy_loss(logprob_T, None, *objective.lower(packed))[0]
    (gradient,) = torch.autograd.grad(loss, logprob)
    return loss.detach(), gradient


def theirs(batch: Batch, loss_fn: Any, step: int = 0, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(loss, gradient in the log-probs) of Trinity's mixed loss on some rows."""
    logprob = batch.logprob.clone().requires_grad_()
    count = len(batch.lengths[rows])
    columns = (logprob, batch.old, batch.mask, batch.advantage, batch.expert)
    loss, _ = loss_fn(*(column[rows] for column in columns), torch.full((count,), step))
    (gradient,) = torch.autograd.grad(loss, logprob)
    return loss.detach(), gradient


def mixed(chord: Any, batch: Batch, objective: CHORD, **changes: Any) -> Any:
    """Trinity's loss under the names of `objective`, for a mini-batch that is one micro-batch."""
    mu = objective.mu
    if isinstance(mu, Schedule):
        course = {
            "mu_peak": mu.start,
            "mu_valley": mu.end,
            "mu_warmup_steps": mu.warmup,
            "mu_decay_steps": mu.steps,
        }
    else:
        course = {"mu_peak": mu, "mu_valley": mu}
    names = {"dapo": "token-mean", "grpo": "seq-mean-token-mean"}
    settings = course | {
        "enable_phi_function": objective.phi,
        "clip_range_low": objective.clip_low,
        "clip_range_high": objective.clip_high,
        "use_dynamic_bsz": False,
        "ppo_mini_batch_size": len(batch.lengths),
        "ppo_micro_batch_size_per_gpu": len(batch.lengths),
        "train_batch_size_usual": batch.rollouts,
        "train_batch_size_expert": len(batch.lengths) - batch.rollouts,
        "grpo_loss_agg_mode": names[objective.aggregation],
    }
    return chord.MIXCHORDPolicyLossFn(**(settings | changes))


def check_equal(mine: tuple[Tensor, Tensor], trinity: tuple[Tensor, Tensor]) -> None:
    """Values to 1e-6; gradients to 1e-6 of the largest entry."""
    largest = float(trinity[1].abs().max())
    assert largest > 1e-3
    assert float((mine[0] - trinity[0]).abs()) <= TOLERANCE, (mine[0], trinity[0])
    error = float((mine[1] - trinity[1]).abs().max())
    assert error <= TOLERANCE * largest, f"differs by {error:.1e}, largest entry {largest:.1e}"


@pytest.mark.parametrize("phi", [False, True])
def test_expert_loss(chord: Any, phi: bool) -> None:
    """With mu = 1 only the experts are left."""
    batch = Batch()
    rows, logprob = slice(batch.rollouts, None), batch.logprob.clone().requires_grad_()
    fn = chord.SFTPhiLossFn() if phi else chord.SFTLossFn()
    loss, _ = fn(logprob[rows], batch.mask[rows])
    (gradient,) = torch.autograd.grad(loss, logprob)
    check_equal(ours(batch, CHORD(mu=1.0, phi=phi)), (loss.detach(), gradient))
    if not phi:
        check_equal(ours(batch, SFT()), (loss.detach(), gradient))


@pytest.mark.parametrize("aggregation", ["dapo", "grpo"])
@pytest.mark.parametrize("phi", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5, 1.0])
def test_mixed_loss(chord: Any, mu: float, phi: bool, aggregation: str) -> None:
    batch = Batch()
    objective = CHORD(mu=mu, phi=phi, delta=CLIP_RATIO_C, clip_high=0.28, aggregation=aggregation)
    check_equal(ours(batch, objective), theirs(batch, mixed(chord, batch, objective)))


@pytest.mark.parametrize("step", [0, 1, 4, 5, 9, 14, 15, 40])
def test_mixed_loss_under_a_schedule(chord: Any, step: int) -> None:
    batch = Batch()
    schedule = Schedule("cosine", start=0.9, end=0.05, steps=10, warmup=5)
    objective = CHORD(mu=schedule, phi=False, delta=CLIP_RATIO_C)
    check_equal(ours(batch, objective, step), theirs(batch, mixed(chord, batch, objective), step))


def test_without_the_dual_clip_the_two_differ(chord: Any) -> None:
    """Trinity's is always there; ours is `delta`, and off by default."""
    batch, objective = Batch(), CHORD(delta=None)
    trinity = theirs(batch, mixed(chord, batch, objective))
    with pytest.raises(AssertionError):
        check_equal(ours(batch, objective), trinity)
    check_equal(ours(batch, dataclasses.replace(objective, delta=CLIP_RATIO_C)), trinity)


def test_trinitys_loss_depends_on_micro_batches(chord: Any) -> None:
    """It takes means over the tokens of a micro-batch, ours over those of the global batch."""
    batch = Batch(rollouts=6, experts=2)
    objective = CHORD(delta=CLIP_RATIO_C)
    one = theirs(batch, mixed(chord, batch, objective))
    check_equal(ours(batch, objective), one)
    check_equal(ours(batch, objective, max_tokens=12), one)
    halves = mixed(chord, batch, objective, ppo_micro_batch_size_per_gpu=4)
    parts = [theirs(batch, halves, rows=slice(start, None, 2)) for start in (0, 1)]  # 3 rollouts and 1 expert each
    assert abs(float(sum(loss for loss, _ in parts)) / 2 - float(one[0])) > 1e-2


WRONG = {"mu": {"mu": 0.12}, "phi": {"phi": False}, "clip_high": {"clip_high": 0.25}, "delta": {"delta": 2.5}}


@pytest.mark.parametrize("name", WRONG)
def test_another_value_of_an_option_is_seen(chord: Any, name: str) -> None:
    batch, objective = Batch(), CHORD(mu=0.1, clip_high=0.28, delta=CLIP_RATIO_C)
    trinity = theirs(batch, mixed(chord, batch, objective))
    check_equal(ours(batch, objective), trinity)
    with pytest.raises(AssertionError):
        check_equal(ours(batch, dataclasses.replace(objective, **WRONG[name])), trinity)
