"""The kernel of `policy_loss` against the torch reference: values, slopes and metrics."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import DEVICE, EXACT, SPECS, in_order, token_fields
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.policy_loss import policy_loss as reference
from aapa.kernels.triton.policy_loss import policy_loss

OPTIONAL = (
    "rl_weight_T",
    "kl_weight_T",
    "sft_weight_T",
    "adv_weight_T",
    "old_logprob_T",
    "correction_T",
    "rollout_logprob_T",
)


def outcome(operation, logprob_T, entropy_T, fields, spec):
    logprob_T = logprob_T.clone().requires_grad_()
    loss, metrics = operation(logprob_T, entropy_T, fields, spec)
    grad = torch.autograd.grad(loss, logprob_T, allow_unused=True)[0] if loss.requires_grad else None
    return loss.detach(), torch.zeros_like(logprob_T) if grad is None else grad, metrics


def assert_same(logprob_T, entropy_T, fields, spec, order="normal", tolerance=EXACT) -> None:
    wanted_loss, wanted_grad, wanted = outcome(reference, logprob_T, entropy_T, fields, spec)
    with in_order(order):
        loss, grad, metrics = outcome(policy_loss, logprob_T, entropy_T, fields, spec)
    torch.testing.assert_close(loss, wanted_loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad, wanted_grad, rtol=tolerance, atol=tolerance)
    assert metrics.keys() == wanted.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, wanted[name], rtol=tolerance, atol=tolerance, msg=name)


@settings(max_examples=25)
@given(
    tokens=st.sampled_from([1, 2, 31, 256, 257, 600]),
    name=st.sampled_from(sorted(SPECS)),
    absent=st.sets(st.sampled_from(OPTIONAL)),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    order=st.sampled_from(["normal", "reversed", "shuffled"]),
    seed=st.integers(0, 1000),
)
def test_values_slopes_and_metrics(tokens, name, absent, masked, order, seed):
    logprob_T, entropy_T, fields = token_fields(tokens, seed, masked)
    fields = dataclasses.replace(fields, **dict.fromkeys(absent))
    assert_same(logprob_T, None if seed % 2 else entropy_T, fields, SPECS[name], order)


def test_no_tokens():
    logprob_T, entropy_T, fields = token_fields(0, 0)
    for spec in SPECS.values():
        assert_same(logprob_T, entropy_T, fields, spec)


def test_positions_without_weight_may_hold_anything():
    logprob_T, entropy_T, fields = token_fields(64, 5, 0.5)
    unused = (fields.rl_weight_T == 0) & (fields.sft_weight_T == 0)
    assert unused.any()
    for name in ("rl_weight_T", "kl_weight_T", "sft_weight_T", "adv_weight_T", "custom_weight_T"):
        value = getattr(fields, name)
        if value is not None:
            value[unused] = 0.0
    for name in ("advantage_T", "old_logprob_T", "ref_logprob_T", "correction_T", "rollout_logprob_T"):
        getattr(fields, name)[unused] = float("nan")
    logprob_T[unused] = float("-inf")
    loss, grad, metrics = outcome(policy_loss, logprob_T, entropy_T, fields, TokenLossSpec())
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert_same(logprob_T, entropy_T, fields, TokenLossSpec())


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_log_prob_that_is_not_finite_is_seen_in_loss_and_gradient(name):
    """Clipping must not turn it into a bound: training would go on with it."""
    logprob_T, _, fields = token_fields(20, 8, 0.0)
    logprob_T[3], fields.sequence_T[3] = float("nan"), 1
    for weight in ("rl_weight_T", "adv_weight_T", "kl_weight_T"):
        others = {f"{other}_weight_T": None for other in ("rl", "adv", "kl", "sft") if f"{other}_weight_T" != weight}
        loss, grad, _ = outcome(policy_loss, logprob_T, None, dataclasses.replace(fields, **others), SPECS[name])
        assert loss.isnan()
        assert grad[3].isnan()


def test_a_loss_of_ones_own_beside_the_others():
    logprob_T, entropy_T, fields = token_fields(50, 6, 0.3)
    weight_T = (torch.arange(50, device=DEVICE) % 3 == 0).double()
    fields = dataclasses.replace(fields, custom_weight_T=weight_T)
    spec = TokenLossSpec(custom_loss=lambda logp, entropy, f: f.advantage_T * logp**2 - 0.1 * entropy)
    assert_same(logprob_T, entropy_T, fields, spec)
    wrong = TokenLossSpec(custom_loss=lambda logp, entropy, f: logp.sum())
    with pytest.raises(ValueError, match="custom_loss: expected shape"):
        policy_loss(logprob_T, entropy_T, fields, wrong)


def test_small_divergences_keep_their_digits():
    """k3 of 1e-4 is 5e-9: exp(d) - 1 - d in float32 would hold no digit of it."""
    distance_T = torch.tensor([1e-4, -1e-4, 1e-3, 0.3, -0.3, 2.0, -5.0, 0.0], dtype=torch.float64, device=DEVICE)
    one_T = torch.ones_like(distance_T)
    truth = torch.expm1(distance_T) - distance_T
    fields = TokenFields(torch.zeros(8, dtype=torch.long, device=DEVICE), kl_weight_T=one_T, ref_logprob_T=distance_T)
    for place in range(8):
        row = fields.rows(slice(place, place + 1))
        row = TokenFields(row.target_T, kl_weight_T=row.kl_weight_T.float(), ref_logprob_T=row.ref_logprob_T.float())
        loss, _ = policy_loss(torch.zeros(1, device=DEVICE), None, row, TokenLossSpec())
        # float32 keeps the distance itself to 6e-8.
        assert abs(loss.item() - truth[place].item()) <= 5e-7 * truth[place].item()


def test_sequence_ratios_need_sequences():
    logprob_T, _, fields = token_fields(4, 0)
    with pytest.raises(ValueError, match="sequence_T: expected"):
        policy_loss(logprob_T, None, dataclasses.replace(fields, sequence_T=None), SPECS["sequence"])


def test_metrics_of_log_probs_that_are_not_numbers_are_the_references():
    """Hardware's maximum passes over NaN."""
    logprob_T, _, fields = token_fields(300, 8, 0.0)
    logprob_T[200] = float("nan")
    fields.rollout_logprob_T[:] = fields.old_logprob_T
    for changed in (fields, dataclasses.replace(fields, old_logprob_T=None)):
        _, _, wanted = outcome(reference, logprob_T, None, changed, TokenLossSpec())
        _, _, metrics = outcome(policy_loss, logprob_T, None, changed, TokenLossSpec())
        assert metrics["max/log_ratio"].isnan()
        for name, value in metrics.items():
            torch.testing.assert_close(value, wanted[name], rtol=EXACT, atol=EXACT, equal_nan=True, msg=name)


def test_a_second_derivative_is_refused():
    logprob_T, _, fields = token_fields(20, 8)
    logprob_T.requires_grad_()
    loss, _ = policy_loss(logprob_T, None, fields, TokenLossSpec())
    (grad_T,) = torch.autograd.grad(loss, logprob_T, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        (loss + grad_T.square().sum()).backward()
