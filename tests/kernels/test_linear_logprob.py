"""`linear_logprob` against torch's own log-softmax, values and gradients."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import linear_logprob
from aapa.kernels.native import missing

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(missing() is not None, reason=str(missing())))]


def naive(hidden, weight, target, temperature, vocab_size):
    """Whole logits, autograd."""
    logits = (hidden @ weight[:vocab_size].t()) / temperature[:, None]
    logp = logits.log_softmax(-1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(tokens: int, hidden_size: int, vocab: int, padding: int, seed: int, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, hidden_size, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocab + padding, hidden_size, generator=g, dtype=torch.float64).to(dtype)
    target = torch.randint(0, vocab, (tokens,), generator=g)
    temperature = 0.5 + torch.rand(tokens, generator=g).to(torch.float64)
    return hidden, weight, target, temperature


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 2, 7, 33, 1030]),
    hidden_size=st.integers(1, 9),
    vocab=st.integers(1, 40),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_match_whole_logits(tokens, hidden_size, vocab, padding, seed):
    hidden, weight, target, temperature = inputs(tokens, hidden_size, vocab, padding, seed)
    ours, theirs = [(h.clone().requires_grad_(), w.clone().requires_grad_()) for h, w in [(hidden, weight)] * 2]
    logprob, entropy = linear_logprob(*ours, target, temperature=temperature, entropy=True, vocab_size=vocab)
    expected_logprob, expected_entropy = naive(*theirs, target, temperature, vocab)
    torch.testing.assert_close(logprob, expected_logprob, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-10, atol=1e-10)
    mix = torch.linspace(-1, 1, tokens, dtype=torch.float64)
    grads = torch.autograd.grad((mix * logprob + (1 - mix) * entropy).sum(), ours)
    expected = torch.autograd.grad((mix * expected_logprob + (1 - mix) * expected_entropy).sum(), theirs)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert not grads[1][vocab:].any()


def test_gradcheck():
    hidden, weight, target, temperature = inputs(5, 4, 7, 2, 3)
    hidden.requires_grad_()
    weight.requires_grad_()
    torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, target, temperature=temperature, entropy=True, vocab_size=7),
        (hidden, weight),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_no_larger_than_that_of_whole_logits_in_the_same_dtype(dtype):
    hidden, weight, target, temperature = inputs(200, 64, 300, 0, 5, dtype)
    truth, _ = naive(hidden.double(), weight.double(), target, temperature, 300)
    logprob, _ = linear_logprob(hidden, weight, target, temperature=temperature.float())
    same, _ = naive(hidden, weight, target, temperature.to(dtype), 300)
    assert logprob.dtype == torch.float32
    assert (logprob - truth).abs().max() <= (same.double() - truth).abs().max() + 1e-5


def test_inputs_that_are_not_contiguous():
    hidden, weight, target, temperature = inputs(6, 8, 10, 0, 1)
    wide, tall = torch.zeros(6, 16, dtype=torch.float64), torch.zeros(20, 8, dtype=torch.float64)
    wide[:, ::2], tall[::2] = hidden, weight
    got, _ = linear_logprob(wide[:, ::2], tall[::2], target, temperature=temperature)
    want, _ = linear_logprob(hidden, weight, target, temperature=temperature)
    assert torch.equal(got, want)


def test_extreme_logits_stay_finite():
    hidden, weight, target, _ = inputs(3, 4, 6, 0, 2)
    logprob, entropy = linear_logprob(hidden * 1e4, weight, target, entropy=True)
    assert torch.isfinite(logprob).all()
    assert torch.isfinite(entropy).all()
    assert (entropy >= -1e-9).all()


def test_a_number_as_temperature_equals_a_tensor():
    hidden, weight, target, _ = inputs(4, 3, 5, 0, 2)
    number, _ = linear_logprob(hidden, weight, target, temperature=0.7)
    tensor, _ = linear_logprob(hidden, weight, target, temperature=torch.full((4,), 0.7))
    assert torch.equal(number, tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_T": torch.zeros(3, dtype=torch.long)}, "target_T: expected shape"),
        ({"weight_VD": torch.zeros(5, 4)}, "weight_VD: expected shape"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"temperature": torch.ones(3)}, "temperature: expected shape"),
        ({"temperature": torch.tensor([1.0, 0.0])}, r"temperature: expected positive numbers, got \[0.0\]"),
        ({"temperature": torch.tensor([1.0, float("nan")])}, "temperature: expected positive numbers"),
        ({"target_T": torch.zeros(2)}, "target_T: expected integers, got torch.float32"),
        ({"vocab_size": 6}, "vocab_size: expected 1 … 5"),
        ({"backend": "fastest"}, "backend: expected one of"),
        pytest.param(
            {"backend": "triton"},
            "backend: expected one that can run on cpu, got 'triton': Triton's kernels need a GPU",
            marks=pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter needs none"),
        ),
    ],
)
def test_wrong_inputs_are_named(change, message):
    arguments = {
        "hidden_TD": torch.zeros(2, 3),
        "weight_VD": torch.zeros(5, 3),
        "target_T": torch.zeros(2, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        linear_logprob(**(arguments | change))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_target_outside_of_the_vocabulary_has_no_log_prob(backend):
    hidden, weight, target, _ = inputs(6, 3, 5, 2, 4)
    want, entropy = linear_logprob(hidden, weight, target, entropy=True, vocab_size=5, backend=backend)
    target[[0, 2, 3, 5]] = torch.tensor([-100, -1, 5, 7])  # 5 is a row that pads, 7 is none
    got, same = linear_logprob(hidden, weight, target, entropy=True, vocab_size=5, backend=backend)
    assert got.isnan().tolist() == [True, False, True, True, False, True]
    assert torch.equal(got[[1, 4]], want[[1, 4]])
    assert torch.equal(same, entropy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_integer_targets_of_any_size(backend):
    hidden, weight, target, _ = inputs(6, 3, 5, 0, 4)
    want, _ = linear_logprob(hidden, weight, target, backend=backend)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(linear_logprob(hidden, weight, target.to(dtype), backend=backend)[0], want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_nothing_in_either_pass(backend):
    hidden, weight, target, _ = inputs(6, 3, 5, 0, 4, torch.float32)

    def both():
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logprob, _ = linear_logprob(*leaves, target, backend=backend)
        return logprob.detach(), *torch.autograd.grad(logprob.sum(), leaves)

    want = both()
    with torch.autocast("cpu", torch.bfloat16):
        got = both()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused(backend):
    hidden, weight, target, _ = inputs(6, 3, 5, 0, 4)
    hidden.requires_grad_()
    logprob, _ = linear_logprob(hidden, weight, target, backend=backend)
    (grad,) = torch.autograd.grad(logprob.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        (logprob.sum() + grad.square().sum()).backward()
