"""Values and gradients of GRPO in every combination of its settings, and of SFT and CHORD, against straight lines.

Weights are rounded to float32 in both (see `straight_line.rounded`); everything else has to agree to 1e-10.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aapa import CHORD, GRPO, SFT, Anchor, Objective, Schedule
from aapa.batch import Sequence
from aapa.kernels import policy_loss
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import straight_line
from straight_line import EXPERTS, MIXED, ROLLOUTS, Row, bare, random_logprobs, with_signals

AGGREGATIONS = ("dapo", "grpo", "dr_grpo")
CLIPS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "asymmetric": {"clip_low": 0.1, "clip_high": 0.28},
    "delta": {"delta": 1.5},
    "cispo": {"surrogate": "cispo", "clip_low": 0.3, "clip_high": 0.4},
}
ESTIMATES: list[dict[str, Any]] = [
    {"beta": 0.0},
    *({"beta": 0.2, "kl": kl, "kl_correction": c} for kl in ("k1", "k2", "k3") for c in (False, True)),
]
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
# (correction, old log-probs present); a correction needs them.
CORRECTED = [("none", False), *((kind, True) for kind in CORRECTIONS)]
BOUNDS = {"correction_min": 0.6, "correction_max": 1.6}


def grpo(aggregation: str = "dapo", **fields: Any) -> GRPO:
    longest = 9 if aggregation == "dr_grpo" else None
    return GRPO(aggregation=aggregation, max_response_length=longest, **{**BOUNDS, **fields})  # type: ignore[arg-type]


def through_kernel(
    sequences: list[Sequence], logprobs: list[Tensor], objective: Objective, step: int = 0, budget: int = 10_000
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The loss and its components, and its gradients by response, through `pack` and `policy_loss`."""
    parts: dict[str, Tensor] = {}
    grads = [torch.empty(0, dtype=torch.float64)] * len(sequences)
    for batch in pack(sequences, budget, objective, step=step):
        # Something other than 0 where nothing that counts is predicted.
        logprob_T = torch.full(batch.token_T.shape, -1.5, dtype=torch.float64)
        for index, place in zip(batch.index_N, batch.responses(logprob_T), strict=True):
            place.copy_(logprobs[index].detach())
        logprob_T.requires_grad_()
        loss, metrics = policy_loss(logprob_T, None, *objective.lower(batch))
        (grad_T,) = torch.autograd.grad(loss, logprob_T)
        for index, part in zip(batch.index_N, batch.responses(grad_T), strict=True):
            grads[index] = part.clone()
            part.zero_()
        assert not grad_T.any(), "a gradient outside of the responses"
        components = {name[5:]: value for name, value in metrics.items() if name.startswith("loss/")}
        for name, value in {"loss": loss.detach(), **components}.items():
            parts[name] = parts.get(name, torch.zeros((), dtype=torch.float64)) + value
    return parts, grads


def assert_equal(ours: Tensor, theirs: Tensor, about: str) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda m: f"{about}: {m}")


def check(
    sequences: list[Sequence], logprobs: list[Tensor], objective: Objective, step: int = 0, budget: int = 10_000
) -> None:
    leaves = [logprob.clone().requires_grad_() for logprob in logprobs]
    terms = straight_line.terms_of(sequences, leaves, objective, step)
    loss = straight_line.loss_of(sequences, leaves, objective, step)
    wanted = torch.autograd.grad(loss, leaves)
    parts, grads = through_kernel(sequences, logprobs, objective, step, budget)
    about = f"{objective} at step {step}"
    assert_equal(parts["loss"], loss.detach(), about)
    for name in objective.components(step):
        assert_equal(parts[name], terms[name].detach(), f"{name} of {about}")
    for index, (ours, theirs) in enumerate(zip(grads, wanted, strict=True)):
        assert_equal(ours, theirs, f"gradient of response {index}, {about}")


def problem(
    rows: tuple[Row, ...], objective: Objective, seed: int, old: bool = True
) -> tuple[list[Sequence], list[Tensor]]:
    sequences = bare(rows, seed)
    logprobs = random_logprobs(sequences, seed + 1)
    return with_signals(sequences, logprobs, objective, seed + 2, old=old), logprobs


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_combination_of_grpo(aggregation: str, clip: str, level: str) -> None:
    for seed, (estimate, (correction, old)) in enumerate(itertools.product(ESTIMATES, CORRECTED)):
        objective = grpo(
            aggregation, **CLIPS[clip], **estimate, ratio_level=level, correction=correction, anchor=Anchor(weight=0.3)
        )
        check(*problem(ROLLOUTS, objective, seed, old), objective)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_combinations_reach_every_branch(level: str) -> None:
    """Else the test above would test less than it says."""
    objective = grpo(**CLIPS["delta"], ratio_level=level, correction="token_mask")
    seen: set[str] = set()
    for seed in range(12):
        for s, logprob in zip(*problem(ROLLOUTS, objective, seed), strict=True):
            for t in straight_line.kept(s):
                whole = level == "sequence"
                ratio = straight_line.sequence_ratio(s, logprob) if whole else straight_line.token_ratio(s, logprob, t)
                bounds = (0.8, 1.2, 1.5)
                where = sum(float(ratio) > bound for bound in bounds)
                for name in ("advantage", "anchor_advantage"):
                    seen.add(f"{name} {'+' if getattr(s, name)[t] > 0 else '-'} region {where}")
                seen.add(f"correction {'masked' if s.correction[t] == 0 else 'kept'}")
    wanted = {f"{n} {sign} region {w}" for n in ("advantage", "anchor_advantage") for sign in "+-" for w in range(4)}
    assert seen == wanted | {"correction masked", "correction kept"}


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 10**6), budget=st.integers(1, 60))
def test_random_batches_and_settings_of_grpo(data: st.DataObject, seed: int, budget: int) -> None:
    rows = st.builds(
        Row,
        prompt=st.integers(1, 4),
        response=st.integers(0, 6),
        masked=st.sampled_from(["none", "some", "all"]),
        anchored=st.sampled_from(["no", "some", "all"]),
    )
    correction, old = data.draw(st.sampled_from(CORRECTED))
    high = data.draw(st.floats(0, 0.5))
    surrogate = data.draw(st.sampled_from(["clip", "cispo"]))
    objective = grpo(
        data.draw(st.sampled_from(AGGREGATIONS)),
        **data.draw(st.sampled_from(ESTIMATES)),
        surrogate=surrogate,
        clip_low=data.draw(st.floats(0, 0.9)),
        clip_high=high,
        delta=data.draw(st.none() | st.floats(1.01 + high, 3)) if surrogate == "clip" else None,
        ratio_level=data.draw(st.sampled_from(["token", "sequence"])),
        correction=correction,
        anchor=data.draw(st.none() | st.builds(Anchor, weight=st.floats(0, 2))),
    )
    sequences = tuple(data.draw(st.lists(rows, min_size=1, max_size=6)))
    check(*problem(sequences, objective, seed, old), objective, budget=budget)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
def test_bounds_of_one_leave_the_on_policy_gradient(surrogate: str, level: str, aggregation: str) -> None:
    """On-policy the ratio is exactly 1, and lies on the bounds: not beyond them, so the gradient is whole."""
    objective = grpo(aggregation, clip_low=0.0, clip_high=0.0, surrogate=surrogate, ratio_level=level)
    check(*problem(ROLLOUTS, objective, 5, old=False), objective)


# mu is 0 at the first step of the warm-up, 0.45 within it, then falls from 0.9 to 0.05; or reaches 1.
FALLING = Schedule("cosine", 0.9, 0.05, steps=10, warmup=4)
RISING = Schedule("linear", 0.0, 1.0, steps=4)


@pytest.mark.parametrize(("mu", "step", "value"), [
    (FALLING, 0, 0.0), (FALLING, 2, 0.45), (FALLING, 4, 0.9), (FALLING, 9, 0.475), (FALLING, 14, 0.05),
    (FALLING, 99, 0.05), (RISING, 0, 0.0), (RISING, 1, 0.25), (RISING, 4, 1.0), (0.0, 7, 0.0), (0.1, 7, 0.1),
    (1.0, 0, 1.0),
])  # fmt: skip
@pytest.mark.parametrize("phi", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3, Schedule("linear", 0.4, 0.1, steps=10, warmup=2)])
def test_chord_over_its_schedule(
    mu: float | Schedule, step: int, value: float, phi: bool, weight: float | Schedule
) -> None:
    objective = CHORD(mu=mu, phi=phi, beta=0.2, anchor=Anchor(weight=weight), clip_high=0.28)
    assert objective.coefficients(step)["chord/mu"] == pytest.approx(value)
    assert objective.uses_experts(step) == (value > 0)
    assert objective.uses_rollouts(step) == (value < 1 or objective.anchor.weight_at(step) > 0)
    check(*problem(MIXED, objective, step), objective, step)


@pytest.mark.parametrize("fields", [
    {"ratio_level": "sequence", "kl": "k1"}, {"surrogate": "cispo", "kl_correction": False},
    {"aggregation": "grpo", "delta": 1.5, "kl": "k2"}, {"correction": "sequence_truncate", "anchor": None},
    {"aggregation": "dr_grpo", "max_response_length": 12, "correction": "token_mask"},
])  # fmt: skip
@pytest.mark.parametrize("budget", [1, 13, 10_000])
def test_chord_with_the_settings_of_grpo(fields: dict[str, Any], budget: int) -> None:
    objective = CHORD(**{"mu": 0.3, "beta": 0.2, "anchor": Anchor(weight=0.5), **BOUNDS, **fields})
    check(*problem(MIXED, objective, 3), objective, budget=budget)


@pytest.mark.parametrize("anchor", [None, Anchor(weight=0.4), Anchor(weight=Schedule("linear", 1.0, 0.0, steps=4))])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("step", [0, 3, 9])
def test_sft_and_its_anchored_version(anchor: Anchor | None, old: bool, step: int) -> None:
    objective = SFT(anchor=anchor)
    check(*problem(MIXED, objective, step, old), objective, step)
    check(*problem(EXPERTS, objective, step, old), objective, step)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("mode", ["loss", "reward"])
@pytest.mark.parametrize("step", [0, 1, 4, 20])
def test_anchored_grpo_over_a_schedule(aggregation: str, mode: str, step: int) -> None:
    """In mode "reward" the loss has no anchor term: the score is in the advantage already."""
    weight = Schedule("cosine", 0.8, 0.0, steps=8, warmup=3)
    objective = grpo(aggregation, beta=0.1, anchor=Anchor(weight=weight, mode=mode))  # type: ignore[arg-type]
    assert ("adv" in objective.components(step)) == (mode == "loss" and step in (1, 4))
    check(*problem(ROLLOUTS, objective, step), objective, step)


def literal_metrics(sequences: list[Sequence], logprobs: list[Tensor], objective: CHORD) -> dict[str, float]:
    """The sums that `policy_loss` names, over the unmasked tokens of rollouts."""
    sums: dict[str, float] = dict.fromkeys(
        [f"sum/{a}_clipped_{side}" for a in ("rl", "adv") for side in ("low", "high")], 0.0
    )

    def add(name: str, value: float) -> None:
        sums[name] = max(sums.get(name, 0.0), value) if name.startswith("max/") else sums.get(name, 0.0) + value

    for s, logprob in zip(sequences, logprobs, strict=True):
        for t in straight_line.kept(s):
            p = math.exp(float(logprob[t]))
            if s.role == "expert":
                add("sum/phi", p * (1 - p))
                continue
            whole = objective.ratio_level == "sequence"
            ratio = float(
                straight_line.sequence_ratio(s, logprob) if whole else straight_line.token_ratio(s, logprob, t)
            )
            error = abs(math.exp(float(s.old_logprob[t])) - math.exp(float(s.rollout_logprob[t])))
            d = float(s.ref_logprob[t] - logprob[t])
            add("sum/tokens", 1.0)
            add("sum/ratio", ratio)
            add("max/log_ratio", abs(math.log(ratio)))
            add("sum/kl_old", float(s.old_logprob[t] - logprob[t]))
            add("sum/kl_ref", math.exp(d) - d - 1)
            add("sum/prob_error", error)
            add("max/prob_error", error)
            add("sum/correction", float(s.correction[t]))
            add("sum/correction_masked", float(s.correction[t] == 0))
            for name, advantage, counts in (
                ("rl", float(s.advantage[t]), True),
                ("adv", float(s.anchor_advantage[t]), straight_line.spoken_of(s, t)),
            ):
                add(f"sum/{name}_clipped_low", float(counts and ratio < 0.8 and advantage < 0))
                add(f"sum/{name}_clipped_high", float(counts and ratio > 1.2 and advantage > 0))
    return sums


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_metrics_are_sums_over_unmasked_rollout_tokens(level: Any) -> None:
    objective = CHORD(
        beta=0.2, mu=0.3, anchor=Anchor(weight=0.3), ratio_level=level, correction="token_mask", correction_max=1.5
    )
    sequences, logprobs = problem(MIXED, objective, 4)
    # The maker of signals leaves one unknown, which would make the sums of its errors unknown.
    sequences[0].rollout_logprob = sequences[0].old_logprob
    (batch,) = pack(sequences, 10_000, objective)
    logprob_T = torch.full(batch.token_T.shape, -1.5, dtype=torch.float64)
    for place, logprob in zip(batch.responses(logprob_T), logprobs, strict=True):
        place.copy_(logprob)
    _, metrics = policy_loss(logprob_T, None, *objective.lower(batch))
    ours = {name: float(value) for name, value in metrics.items() if not name.startswith("loss/")}
    assert ours == pytest.approx(literal_metrics(sequences, logprobs, objective), rel=1e-9, abs=1e-12)
