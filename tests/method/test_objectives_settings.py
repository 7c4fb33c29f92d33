"""Importance correction, reward shaping and schedules against literal formulas; wrong settings are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from aapa import CHORD, GRPO, SFT, Anchor, Schedule
from aapa.importance import importance_correction
from aapa.kernels import TokenLossSpec
from aapa.shaping import overlong_penalty

KINDS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def literal_correction(
    old: list[float], rollout: list[float], mask: list[bool], kind: str, low: float, high: float
) -> list[float]:
    differences = [o - r if keep and not math.isnan(r) else 0.0 for o, r, keep in zip(old, rollout, mask, strict=True)]
    made = []
    for difference in differences:
        c = math.exp(sum(differences) if kind.startswith("sequence") else difference)
        if kind.endswith("truncate"):
            c = low if c < low else high if c > high else c
        elif c < low or c > high:
            c = 0.0
        made.append(c)
    return made


@given(
    tokens=st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0) | st.just(math.nan), st.booleans()), max_size=12),
    kind=st.sampled_from(KINDS),
    low=st.floats(0, 1),
    width=st.floats(0.01, 4),
    masked=st.booleans(),
)
def test_importance_correction_is_its_formula(
    tokens: list[tuple[float, float, bool]], kind: Any, low: float, width: float, masked: bool
) -> None:
    old, rollout, mask = ([row[i] for row in tokens] for i in range(3))
    mask = mask if masked else [True] * len(tokens)
    high = low + width
    # Next to a bound, rounding decides whether a factor is masked; exactly there, see the test of the bounds below.
    free = literal_correction(old, rollout, mask, kind.replace("mask", "truncate"), 0.0, math.inf)
    assume(all(abs(c - bound) > 1e-9 * bound for c in free for bound in (low, high)))
    ours = importance_correction(
        torch.tensor(old, dtype=torch.float64),
        torch.tensor(rollout, dtype=torch.float64),
        torch.tensor(mask, dtype=torch.bool) if masked else None,
        kind,
        low,
        high,
    )
    assert ours.dtype == torch.float64
    assert ours.tolist() == pytest.approx(literal_correction(old, rollout, mask, kind, low, high), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_log_probs_correct_nothing(kind: Any) -> None:
    same = torch.tensor([-0.3, -2.0, -0.1])
    assert importance_correction(same, same.double(), None, kind).tolist() == [1.0, 1.0, 1.0]
    unknown = torch.full((3,), math.nan)
    assert importance_correction(same, unknown, None, kind).tolist() == [1.0, 1.0, 1.0]


def test_bounds_belong_to_what_is_kept() -> None:
    old = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    rollout = torch.tensor([-math.log(2.0), -math.log(2.1), -math.log(0.4)], dtype=torch.float64)
    high = float((old - rollout)[0].exp())
    assert importance_correction(old, rollout, None, "token_mask", 0.5, high).tolist() == [high, 0.0, 0.0]
    assert importance_correction(old, rollout, None, "token_truncate", 0.5, high).tolist() == [high, high, 0.5]
    total = math.exp(math.log(2.0) + math.log(2.1) + math.log(0.4))
    assert importance_correction(old, rollout, None, "sequence_mask", 0.5, 2.0).tolist() == pytest.approx([total] * 3)


def test_a_long_response_may_overflow_its_correction() -> None:
    old, rollout = torch.full((4000,), -0.1), torch.full((4000,), -1.1)
    assert importance_correction(old, rollout, None, "sequence_truncate", 0.0, 3.0).unique().tolist() == [3.0]
    assert importance_correction(old, rollout, None, "sequence_mask", 0.0, 3.0).unique().tolist() == [0.0]
    assert importance_correction(rollout, old, None, "sequence_truncate", 0.5, 3.0).unique().tolist() == [0.5]


@pytest.mark.parametrize("kind", ["none", "token", "token_clip", "batch_mask", "truncate", ""])
def test_an_unknown_correction_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="^kind: expected"):
        importance_correction(torch.zeros(2), torch.zeros(2), None, kind)


@given(length=st.integers(0, 60), limit=st.integers(1, 50), buffer=st.integers(0, 40), penalty=st.floats(0, 5))
def test_overlong_penalty_is_its_formula(length: int, limit: int, buffer: int, penalty: float) -> None:
    begin = limit - buffer
    if buffer == 0 or length <= begin:
        wanted = 0.0
    elif length >= limit:
        wanted = -penalty
    else:
        wanted = -penalty * (length - begin) / buffer
    assert overlong_penalty(length, limit, buffer, penalty) == pytest.approx(wanted, rel=1e-12, abs=1e-300)


@given(
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    start=st.floats(0, 2),
    end=st.floats(0, 2),
    steps=st.integers(1, 20),
    warmup=st.integers(0, 8),
    step=st.integers(0, 40),
)
def test_schedules_are_their_formulas(kind: Any, start: float, end: float, steps: int, warmup: int, step: int) -> None:
    schedule = Schedule(kind, start, end, steps=steps, warmup=warmup)
    u = max(0.0, min(1.0, (step - warmup) / steps))
    after = {
        "constant": start,
        "linear": (1 - u) * start + u * end,
        "cosine": end + (start - end) * (1 + math.cos(math.pi * u)) / 2,
    }
    wanted = start * step / warmup if step < warmup else after[kind]
    assert schedule.at(step) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert schedule.at(step) <= schedule.peak() + 1e-12
    assert schedule.at(warmup) == pytest.approx(start, rel=1e-12, abs=1e-15)
    assert schedule.at(0) == 0.0 or warmup == 0
    assert schedule.at(warmup + steps) == pytest.approx(start if kind == "constant" else end, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("fields", "field"), [
    ({"group_size": 1}, "group_size"),
    ({"updates_per_rollout": 0}, "updates_per_rollout"),
    ({"epochs_per_rollout": 0}, "epochs_per_rollout"),
    ({"dynamic_sampling_rounds": 0}, "dynamic_sampling_rounds"),
    ({"overlong_buffer": -1}, "overlong_buffer"),
    ({"overlong_penalty": -0.5}, "overlong_penalty"),
    ({"beta": -0.1}, "beta"),
    ({"beta": math.nan}, "beta"),
    ({"beta": math.inf}, "beta"),
    ({"clip_low": -0.1}, "clip_low"),
    ({"clip_low": 1.0}, "clip_low"),
    ({"clip_low": 1.1, "surrogate": "cispo"}, "clip_low"),
    ({"clip_high": -0.1}, "clip_high"),
    ({"clip_high": math.inf}, "clip_high"),
    ({"delta": 1.2}, "delta"),
    ({"delta": math.nan}, "delta"),
    ({"delta": 1.5, "clip_high": 0.6}, "delta"),
    ({"delta": 2.0, "surrogate": "cispo"}, "delta"),
    ({"surrogate": "ppo"}, "surrogate"),
    ({"ratio_level": "batch"}, "ratio_level"),
    ({"kl": "k4"}, "kl"),
    ({"aggregation": "mean"}, "aggregation"),
    ({"scale": "std"}, "scale"),
    ({"correction": "token"}, "correction"),
    ({"correction_min": -1.0}, "correction_min"),
    ({"correction_max": math.inf}, "correction_max"),
    ({"correction_min": 2.0, "correction_max": 2.0}, "correction_max"),
    ({"correction_min": 3.5}, "correction_max"),
    ({"dynamic_sampling": "on"}, "dynamic_sampling"),
    ({"aggregation": "dr_grpo"}, "max_response_length"),
    ({"max_response_length": 8}, "max_response_length"),
    ({"aggregation": "dr_grpo", "max_response_length": 0}, "max_response_length"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [GRPO, CHORD])
def test_wrong_settings_of_grpo_are_named(kind: type[GRPO], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        kind(**fields)


@pytest.mark.parametrize("fields", [
    {"clip_low": 1.0, "surrogate": "cispo"}, {"clip_low": 0.0, "clip_high": 0.0}, {"delta": 1.21},
    {"aggregation": "dr_grpo", "max_response_length": 1}, {"correction_min": 0.0, "correction_max": 0.1},
])  # fmt: skip
def test_settings_at_the_limit_are_taken(fields: dict[str, Any]) -> None:
    assert all(getattr(GRPO(**fields), name) == value for name, value in fields.items())


@pytest.mark.parametrize(("make", "field"), [
    (lambda: CHORD(mu=-0.1), "mu"),
    (lambda: CHORD(mu=1.1), "mu"),
    (lambda: CHORD(mu=math.nan), "mu"),
    (lambda: CHORD(mu=Schedule("cosine", 1.2, 0.1, 5)), "mu"),
    (lambda: CHORD(mu=Schedule("linear", 0.9, -0.1, 5)), "mu"),
    (lambda: CHORD(expert_batch_size=0), "expert_batch_size"),
    (lambda: SFT(group_size=1), "group_size"),
    (lambda: SFT(anchor=Anchor(mode="reward")), "anchor.mode"),
    (lambda: Anchor(weight=-0.1), "weight"),
    (lambda: Anchor(weight=math.nan), "weight"),
    (lambda: Anchor(weight=math.inf), "weight"),
    (lambda: Anchor(weight=Schedule("linear", 1.0, -1.0, 5)), "weight"),
    (lambda: Anchor(weight=Schedule("cosine", -1.0, 1.0, 5)), "weight"),
    (lambda: Anchor(clip=0.0), "clip"),
    (lambda: Anchor(clip=math.nan), "clip"),
    (lambda: Anchor(discount=0.0), "discount"),
    (lambda: Anchor(discount=1.1), "discount"),
    (lambda: Anchor(discount=math.nan), "discount"),
    (lambda: Anchor(mode="penalty"), "mode"),  # type: ignore[arg-type]
    (lambda: Anchor(credit="token"), "credit"),  # type: ignore[arg-type]
    (lambda: Anchor(granularity="word"), "granularity"),  # type: ignore[arg-type]
    (lambda: Anchor(span="none"), "span"),  # type: ignore[arg-type]
    (lambda: Anchor(span=("<think>",)), "span"),  # type: ignore[arg-type]
    (lambda: Anchor(span=("<think>", "<think>")), "span"),
    (lambda: Anchor(span=("", "</think>")), "span"),
    (lambda: Anchor(span=("a", "b", "c")), "span"),  # type: ignore[arg-type]
    (lambda: Schedule("square"), "kind"),  # type: ignore[arg-type]
    (lambda: Schedule("linear", 0.0, 1.0), "steps"),
    (lambda: Schedule(warmup=-1), "warmup"),
    (lambda: Schedule(start=math.inf), "start"),
    (lambda: Schedule(end=math.nan), "end"),
    (lambda: TokenLossSpec(surrogate="ppo"), "surrogate"),  # type: ignore[arg-type]
    (lambda: TokenLossSpec(ratio_level="batch"), "ratio_level"),  # type: ignore[arg-type]
    (lambda: TokenLossSpec(kl="k4"), "kl"),  # type: ignore[arg-type]
    (lambda: TokenLossSpec(custom_scope="all"), "custom_scope"),  # type: ignore[arg-type]
    (lambda: TokenLossSpec(delta=1.2), "delta"),
])  # fmt: skip
def test_wrong_settings_are_named(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        make()
