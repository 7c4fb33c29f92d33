"""`policy_loss` against a loop over tokens that follows the formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import TokenFields, TokenLossSpec, policy_loss


def by_hand(logprob: list[float], old: list[float] | None, f: TokenFields, spec: TokenLossSpec):
    """(loss, d loss / d logprob) token by token, in plain floats."""
    loss, grads = 0.0, []
    for t, lp in enumerate(logprob):
        ratio = math.exp(lp - (lp if old is None else old[t]))
        grad = 0.0
        for weight, advantage in ((f.rl_weight_T, f.advantage_T), (f.adv_weight_T, f.anchor_advantage_T)):
            if weight is None or weight[t] == 0:
                continue
            w, a = float(weight[t]), float(advantage[t])
            clipped = min(max(ratio, 1 - spec.clip_low), 1 + spec.clip_high)
            loss -= w * min(ratio * a, clipped * a)
            if ratio * a <= clipped * a or clipped == ratio:
                grad -= w * ratio * a
        if f.kl_weight_T is not None and f.kl_weight_T[t] != 0:
            d = float(f.ref_logprob_T[t]) - lp
            loss += float(f.kl_weight_T[t]) * (math.exp(d) - d - 1)
            grad += float(f.kl_weight_T[t]) * (1 - math.exp(d))
        if f.sft_weight_T is not None:
            loss -= float(f.sft_weight_T[t]) * lp
            grad -= float(f.sft_weight_T[t])
        grads.append(grad)
    return loss, grads


def fields_of(tokens: int, seed: int, masked: float) -> tuple[torch.Tensor, torch.Tensor, TokenFields]:
    g = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(tokens, generator=g, dtype=torch.float64)

    def weight() -> torch.Tensor:
        keep = torch.rand(tokens, generator=g) >= masked
        return torch.rand(tokens, generator=g).double() * keep

    logprob = -normal().abs() * 2
    old = logprob + 0.3 * normal()
    return (
        logprob,
        old,
        TokenFields(
            target_T=torch.zeros(tokens, dtype=torch.long),
            rl_weight_T=weight(),
            kl_weight_T=weight(),
            sft_weight_T=weight(),
            adv_weight_T=weight(),
            advantage_T=normal(),
            anchor_advantage_T=normal(),
            old_logprob_T=old,
            ref_logprob_T=logprob + 0.5 * normal(),
        ),
    )


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    seed=st.integers(0, 10_000),
    masked=st.sampled_from([0.0, 0.4, 1.0]),
    low=st.sampled_from([0.0, 0.1, 0.2]),
    high=st.sampled_from([0.05, 0.28]),
)
def test_value_and_gradient_follow_the_formula(tokens, seed, masked, low, high):
    logprob, old, f = fields_of(tokens, seed, masked)
    spec = TokenLossSpec(clip_low=low, clip_high=high)
    expected, grads = by_hand(logprob.tolist(), old.tolist(), f, spec)
    logprob.requires_grad_()
    loss, metrics = policy_loss(logprob, None, f, spec)
    assert abs(loss.item() - expected) <= 1e-10 * max(1, abs(expected))
    if tokens:
        (grad,) = torch.autograd.grad(loss, logprob)
        torch.testing.assert_close(grad, torch.tensor(grads, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    parts = sum(float(metrics[f"loss/{name}"]) for name in ("rl", "kl", "sft", "adv"))
    assert abs(parts - expected) <= 1e-10 * max(1, abs(expected))


def test_the_two_surrogates_clip_apart():
    """clip(A) + clip(B) is not clip(A + B): with opposite signs only one of them is clipped."""
    one = torch.ones(1, dtype=torch.float64)
    f = TokenFields(
        target_T=torch.zeros(1, dtype=torch.long),
        rl_weight_T=one,
        adv_weight_T=one,
        advantage_T=one,
        anchor_advantage_T=-one,
        old_logprob_T=torch.zeros(1, dtype=torch.float64),
    )
    logprob = torch.tensor([math.log(1.5)], dtype=torch.float64)
    loss, metrics = policy_loss(logprob, None, f, TokenLossSpec(0.2, 0.2))
    assert float(metrics["loss/rl"]) == pytest.approx(-1.2)
    assert float(metrics["loss/adv"]) == pytest.approx(1.5)
    assert float(loss) == pytest.approx(0.3)


def test_without_old_logprobs_the_ratio_is_one_and_its_gradient_is_the_score():
    logprob, _, f = fields_of(9, 1, 0.0)
    only = TokenFields(target_T=f.target_T, rl_weight_T=f.rl_weight_T, advantage_T=f.advantage_T)
    logprob.requires_grad_()
    loss, metrics = policy_loss(logprob, None, only, TokenLossSpec())
    (grad,) = torch.autograd.grad(loss, logprob)
    torch.testing.assert_close(grad, -f.rl_weight_T * f.advantage_T)
    assert float(metrics["sum/ratio"]) == 9.0
    assert float(metrics["sum/rl_clipped_low"]) == float(metrics["sum/rl_clipped_high"]) == 0.0


def test_masked_positions_may_hold_anything():
    logprob, _, f = fields_of(6, 2, 0.0)
    weight = f.rl_weight_T.clone()
    weight[3] = 0.0
    poisoned = TokenFields(
        target_T=f.target_T,
        rl_weight_T=weight,
        kl_weight_T=weight,
        advantage_T=torch.where(weight == 0, torch.nan, f.advantage_T),
        ref_logprob_T=torch.where(weight == 0, torch.inf, f.ref_logprob_T),
        old_logprob_T=torch.where(weight == 0, -torch.inf, f.old_logprob_T),
    )
    logprob.requires_grad_()
    loss, metrics = policy_loss(logprob, torch.where(weight == 0, torch.nan, 1.0), poisoned, TokenLossSpec())
    (grad,) = torch.autograd.grad(loss, logprob)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert grad[3] == 0
    assert all(torch.isfinite(value) for value in metrics.values())
    assert float(metrics["sum/entropy"]) == 5.0


def test_clip_fraction_counts_only_what_the_surrogate_clips():
    f = TokenFields(
        target_T=torch.zeros(4, dtype=torch.long),
        rl_weight_T=torch.ones(4),
        advantage_T=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        old_logprob_T=torch.zeros(4),
    )
    logprob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log()
    _, metrics = policy_loss(logprob, None, f, TokenLossSpec(0.2, 0.2))
    assert float(metrics["sum/rl_clipped_high"]) == 1.0  # 1.5 with A > 0
    assert float(metrics["sum/rl_clipped_low"]) == 1.0  # 0.5 with A < 0


def test_log_probs_that_the_engine_does_not_know_count_as_no_error():
    f = TokenFields(
        target_T=torch.zeros(2, dtype=torch.long),
        rl_weight_T=torch.ones(2),
        advantage_T=torch.ones(2),
        rollout_logprob_T=torch.tensor([math.log(0.5), math.nan]),
    )
    _, metrics = policy_loss(torch.tensor([0.25, 0.5]).log(), None, f, TokenLossSpec())
    assert float(metrics["sum/prob_error"]) == pytest.approx(0.25)
    assert float(metrics["max/prob_error"]) == pytest.approx(0.25)


@pytest.mark.parametrize("backend", ["triton", "native"])
def test_an_absent_backend_is_refused(backend):
    logprob, _, f = fields_of(2, 0, 0.0)
    with pytest.raises(ValueError, match="backend: expected"):
        policy_loss(logprob, None, f, TokenLossSpec(), backend=backend)


def test_fields_refuse_what_does_not_belong_together():
    target = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="rl_weight_T: expected shape"):
        TokenFields(target_T=target, rl_weight_T=torch.ones(2), advantage_T=torch.ones(3))
    with pytest.raises(ValueError, match="anchor_advantage_T: expected a tensor beside adv_weight_T"):
        TokenFields(target_T=target, adv_weight_T=torch.ones(3))


def test_fields_have_one_dimension_and_integer_targets():
    with pytest.raises(ValueError, match=r"target_T: expected one dimension \[T\], got shape \(2, 3\)"):
        TokenFields(target_T=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"sft_weight_T: expected shape \(3,\), got \(1,\)"):
        TokenFields(target_T=torch.zeros(3, dtype=torch.long), sft_weight_T=torch.ones(1))
    with pytest.raises(ValueError, match=r"target_T: expected integers, got torch.float32"):
        TokenFields(target_T=torch.zeros(3))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (1, 3), (4,), ()])
def test_log_probs_and_entropies_of_another_shape_are_refused(shape):
    f = TokenFields(target_T=torch.zeros(3, dtype=torch.long), sft_weight_T=torch.ones(3))
    with pytest.raises(ValueError, match=r"^logprob_T: expected shape \(3,\)"):
        policy_loss(torch.zeros(shape), None, f, TokenLossSpec())
    with pytest.raises(ValueError, match=r"^entropy_T: expected shape \(3,\)"):
        policy_loss(torch.zeros(3), torch.zeros(shape), f, TokenLossSpec())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": math.nan}, "^clip_low: expected a number that is not negative, got nan"),
        ({"clip_low": -0.1}, "^clip_low"),
        ({"clip_high": -0.1}, "^clip_high"),
        ({"clip_high": math.nan}, "^clip_high"),
        ({"delta": math.nan}, "^delta"),
        ({"delta": 1.1}, "^delta"),
        ({"custom_loss": 3.0}, "^custom_loss: expected a function, got 3.0"),
        ({"kl": "k4"}, "^kl"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenLossSpec(**options)


def own(value) -> tuple[TokenFields, TokenLossSpec]:
    f = TokenFields(target_T=torch.zeros(3, dtype=torch.long), custom_weight_T=torch.tensor([0.0, 1.0, 2.0]))
    return f, TokenLossSpec(custom_loss=lambda logprob, entropy, fields: value(logprob))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda logprob: None, "a tensor of the rows' losses, got NoneType"),
        (lambda logprob: (logprob, {}), "a tensor of the rows' losses, got tuple"),
        (lambda logprob: logprob.sum(), r"shape \(2,\), got \(\)"),
        (lambda logprob: logprob > 0, "floating point, got torch.bool"),
    ],
)
def test_what_a_custom_loss_must_not_return(value, message):
    with pytest.raises(ValueError, match=f"^custom_loss: expected {message}"):
        policy_loss(torch.zeros(3), None, *own(value))


def test_a_custom_loss_of_another_precision_is_brought_to_that_of_the_log_probs():
    logprob = torch.tensor([5.0, -1.0, -2.0], requires_grad=True)
    loss, metrics = policy_loss(logprob, None, *own(lambda x: x.double() ** 2))
    assert loss.dtype == metrics["loss/custom"].dtype == torch.float32
    loss.backward()
    assert float(loss) == 9.0
    assert logprob.grad.tolist() == [0.0, -2.0, -8.0]


def test_a_custom_loss_is_not_called_without_rows():
    def never(logprob, entropy, fields):
        raise AssertionError("called with no rows")

    f = TokenFields(target_T=torch.zeros(3, dtype=torch.long), custom_weight_T=torch.zeros(3))
    logprob = torch.zeros(3, requires_grad=True)
    loss, metrics = policy_loss(logprob, None, f, TokenLossSpec(custom_loss=never))
    loss.backward()
    assert float(loss) == float(metrics["loss/custom"]) == 0.0
    assert not logprob.grad.any()
    with pytest.raises(ValueError, match="^custom_loss: expected a function beside custom_weight_T, got None"):
        policy_loss(logprob, None, f, TokenLossSpec())
