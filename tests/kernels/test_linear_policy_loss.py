"""`linear_policy_loss` against autograd through its parts, and the contract of its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from aapa.kernels import TokenFields, TokenLossSpec, linear_logprob, linear_policy_loss, policy_loss

SPEC = TokenLossSpec(clip_low=0.1, clip_high=0.28)


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
        ({"backend": "fastest"}, "backend: expected"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    hidden, weight, fields = problem(3, 4, 5, 0)
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(hidden, weight, fields, SPEC, **change)
