"""`linear_policy_loss` against autograd through its parts, and the contract of its gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from aapa.kernels import TokenFields, TokenLossSpec, linear_logprob, linear_policy_loss, policy_loss
from aapa.kernels.native import missing

SPEC = TokenLossSpec(clip_low=0.1, clip_high=0.28)
WEIGHTS = ("rl_weight_T", "kl_weight_T", "sft_weight_T", "adv_weight_T")
BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(missing() is not None, reason=str(missing())))]


def problem(tokens: int, hidden_size: int, vocab: int, seed: int, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    hidden, weight = normal(tokens, hidden_size).to(dtype), normal(vocab, hidden_size).to(dtype)
    target = torch.randint(0, vocab, (tokens,), generator=g)
    temperature = 0.5 + torch.rand(tokens, generator=g).double()
    with torch.no_grad():
        logprob, _ = linear_logprob(hidden.double(), weight.double(), target, temperature=temperature)
    mask = (torch.rand(tokens, generator=g) < 0.7).double()
    fields = TokenFields(
        target_T=target,
        temperature_T=temperature,
        rl_weight_T=mask * torch.rand(tokens, generator=g).double(),
        kl_weight_T=0.1 * mask,
        sft_weight_T=(1 - mask) * 0.3,
        adv_weight_T=mask * torch.rand(tokens, generator=g).double(),
        advantage_T=normal(tokens),
        anchor_advantage_T=normal(tokens),
        old_logprob_T=logprob + 0.3 * normal(tokens),
        ref_logprob_T=logprob + 0.3 * normal(tokens),
    )
    return hidden, weight, fields


def by_autograd(hidden, weight, fields, vocab_size=None):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy = linear_logprob(
        hidden, weight, fields.target_T, temperature=fields.temperature_T, entropy=True, vocab_size=vocab_size
    )
    loss, metrics = policy_loss(logprob, entropy.detach(), fields, SPEC)
    return loss.detach(), torch.autograd.grad(loss, (hidden, weight)), metrics


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 17, 1024, 1025, 2100]),
    hidden_size=st.integers(1, 8),
    vocab=st.integers(2, 30),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_loss_gradients_and_metrics_equal_autograd(tokens, hidden_size, vocab, padding, seed):
    hidden, weight, fields = problem(tokens, hidden_size, vocab, seed)
    weight = torch.cat([weight, torch.full((padding, hidden_size), 9.0, dtype=torch.float64)])
    want_loss, want_grads, want_metrics = by_autograd(hidden, weight, fields, vocab)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, metrics = linear_policy_loss(hidden, weight, fields, SPEC, vocab_size=vocab)
    grads = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss.detach(), want_loss, rtol=1e-10, atol=1e-10)
    for got, want in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    assert metrics.keys() == want_metrics.keys()
    for name in metrics:
        torch.testing.assert_close(metrics[name], want_metrics[name], rtol=1e-9, atol=1e-9)


def test_main_grad_accumulates_over_micro_batches_and_leaves_zeros_to_autograd():
    hidden, weight, fields = problem(40, 6, 11, 4)
    _, (_, want), _ = by_autograd(hidden, weight, fields)
    weight.requires_grad_()
    main_grad = torch.ones_like(weight)
    for start, stop in ((0, 13), (13, 40)):
        part = hidden[start:stop].clone().requires_grad_()
        loss, _ = linear_policy_loss(part, weight, fields.rows(slice(start, stop)), SPEC, main_grad=main_grad)
        _, dummy = torch.autograd.grad(loss, (part, weight))
        assert not dummy.any()
    torch.testing.assert_close(main_grad - 1, want, rtol=1e-9, atol=1e-10)


def test_an_upstream_gradient_is_applied_without_main_grad_and_refused_with_it():
    hidden, weight, fields = problem(9, 4, 7, 1)
    _, wanted, _ = by_autograd(hidden, weight, fields)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss, _ = linear_policy_loss(hidden, weight, fields, SPEC)
    for got, want in zip(torch.autograd.grad(3.0 * loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(got, 3.0 * want)
    loss, _ = linear_policy_loss(hidden, weight, fields, SPEC, main_grad=torch.zeros_like(weight))
    with pytest.raises(RuntimeError, match="upstream gradient of 1"):
        (0.5 * loss).backward()


def test_an_evaluation_forward_makes_no_gradient():
    hidden, weight, fields = problem(9, 4, 7, 1)
    hidden.requires_grad_()
    weight.requires_grad_()
    main_grad = torch.zeros_like(weight)
    with torch.no_grad():
        loss, metrics = linear_policy_loss(hidden, weight, fields, SPEC, main_grad=main_grad)
    assert not loss.requires_grad
    assert not main_grad.any()
    again, same = linear_policy_loss(hidden, weight, fields, SPEC, main_grad=main_grad)
    assert again.requires_grad
    assert main_grad.any()
    assert torch.equal(loss, again.detach())
    assert all(torch.equal(metrics[name], same[name]) for name in metrics)


def test_it_refuses_to_be_recomputed():
    hidden, weight, fields = problem(9, 4, 7, 1)
    hidden.requires_grad_()
    for reentrant in (True, False):
        with pytest.raises(RuntimeError, match="activation checkpointing"):
            checkpoint(
                lambda h: linear_policy_loss(h, weight, fields, SPEC)[0], hidden, use_reentrant=reentrant
            ).backward()


def test_no_tokens_and_all_masked_give_zero():
    hidden, weight, fields = problem(9, 4, 7, 1)
    hidden.requires_grad_()
    weight.requires_grad_()
    empty, metrics = linear_policy_loss(hidden[:0], weight, fields.rows(slice(0, 0)), SPEC)
    assert float(empty) == 0.0
    assert float(metrics["sum/tokens"]) == 0.0
    zero = torch.zeros(9, dtype=torch.float64)
    masked = TokenFields(target_T=fields.target_T, rl_weight_T=zero, advantage_T=fields.advantage_T)
    loss, _ = linear_policy_loss(hidden, weight, masked, SPEC)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert float(loss) == 0.0
    assert not any(grad.any() for grad in grads)


def test_float32_error_is_no_larger_than_autograds():
    hidden, weight, fields = problem(300, 32, 200, 7)
    _, truth, _ = by_autograd(hidden, weight, fields)
    low = [x.float() for x in (hidden, weight)]
    _, same, _ = by_autograd(*low, fields)
    low = [x.requires_grad_() for x in low]
    loss, _ = linear_policy_loss(*low, fields, SPEC)
    for got, plain, want in zip(torch.autograd.grad(loss, low), same, truth, strict=True):
        assert (got - want).abs().max() <= 2 * (plain - want).abs().max() + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "quick"}, "mode: expected"),
        ({"main_grad": torch.zeros(2, 2)}, "main_grad: expected shape"),
        (
            {"main_grad": torch.zeros(5, 4, dtype=torch.bfloat16)},
            "main_grad: expected torch.float32 or torch.float64",
        ),
        ({"main_grad": torch.zeros(5, 4, device="meta")}, "main_grad: expected on cpu as the weight, got on meta"),
        ({"main_grad": torch.zeros(4, 5).t()}, "main_grad: expected contiguous rows, got strides"),
        ({"backend": "fastest"}, "backend: expected"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    hidden, weight, fields = problem(3, 4, 5, 0)
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(hidden, weight, fields, SPEC, **change)


def test_main_grad_of_float32_inputs_is_float32():
    hidden, weight, fields = problem(3, 4, 5, 0, torch.float32)
    with pytest.raises(ValueError, match="^main_grad: expected torch.float32, got torch.float64"):
        linear_policy_loss(hidden, weight, fields, SPEC, main_grad=torch.zeros(5, 4, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_main_grad_of_a_weight_without_gradient_stays_as_it_is(backend):
    hidden, weight, fields = problem(9, 4, 7, 1)
    hidden.requires_grad_()
    main_grad = torch.zeros_like(weight)
    loss, _ = linear_policy_loss(hidden, weight, fields, SPEC, main_grad=main_grad, backend=backend)
    loss.backward()
    assert hidden.grad.any()
    assert not main_grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend):
    hidden, weight, fields = problem(9, 4, 7, 1)
    hidden.requires_grad_()
    loss, _ = linear_policy_loss(hidden, weight, fields, SPEC, backend=backend)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        (loss + grad.square().sum()).backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("spec", [SPEC, TokenLossSpec(custom_loss=lambda logp, e, f: -logp * e, custom_scope="batch")])
def test_rows_without_weight_may_hold_anything(backend, bad, spec):
    """Hidden states, temperatures, and targets that are none, as loaders write them for what is masked."""
    hidden, weight, fields = problem(12, 4, 7, 3)
    unused = torch.arange(12) % 3 == 1
    changed = {name: value.masked_fill(unused, 0.0) for name in WEIGHTS if (value := getattr(fields, name)) is not None}
    if spec.custom_loss is not None:
        changed["custom_weight_T"] = (~unused).double()
    fields = replace(fields, **changed)
    clean = outcome(hidden, weight, fields, spec, backend)
    hidden[unused] = bad
    masked = {"target_T": fields.target_T.masked_fill(unused, -100), "temperature_T": fields.temperature_T * ~unused}
    found = outcome(hidden, weight, replace(fields, **masked), spec, backend)
    for got, want in zip(found[:3], clean[:3], strict=True):
        assert torch.equal(got, want)
    assert all(torch.equal(found[3][name], value) for name, value in clean[3].items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weighted_target_outside_of_the_vocabulary_is_seen_in_the_loss(backend):
    hidden, weight, fields = problem(9, 4, 7, 1)
    for outside in (-100, -1, 6, 7):
        wrong = replace(fields, target_T=fields.target_T.clamp(max=5).index_fill(0, torch.tensor(2), outside))
        loss, _ = linear_policy_loss(hidden, weight, wrong, SPEC, vocab_size=6, backend=backend)
        assert loss.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperatures_that_are_not_positive_are_refused(backend):
    hidden, weight, fields = problem(3, 4, 5, 0)
    for bad in (0.0, -1.0, float("nan")):
        wrong = replace(fields, temperature_T=torch.tensor([1.0, bad, 1.0]))
        with pytest.raises(ValueError, match="^temperature_T: expected positive numbers, got"):
            linear_policy_loss(hidden, weight, wrong, SPEC, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integer_targets_of_any_size_and_autocast_change_nothing(backend):
    hidden, weight, fields = problem(9, 4, 7, 1, torch.float32)
    want = outcome(hidden, weight, fields, SPEC, backend)
    for dtype in (torch.int32, torch.uint8):
        got = outcome(hidden, weight, replace(fields, target_T=fields.target_T.to(dtype)), SPEC, backend)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(got[:3], want[:3], strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(hidden, weight, fields, SPEC, backend)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got[:3], want[:3], strict=True))


def outcome(hidden, weight, fields, spec, backend):
    """Loss, both gradients, metrics."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, metrics = linear_policy_loss(hidden, weight, fields, spec, backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight)), metrics
