"""The chunk loop of the head against the reference, with each glue, in small chunks; and three-way numerics."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import TokenFields, TokenLossSpec, policy_loss
from aapa.kernels.chunked import logprob as chunked_logprob
from aapa.kernels.chunked import plan
from aapa.kernels.chunked import policy as chunked_policy
from aapa.kernels.chunked.glue import Glue, finish, merge
from aapa.kernels.native import missing
from aapa.kernels.native.glue import NativeGlue
from aapa.kernels.reference.linear_logprob import linear_logprob as reference_logprob
from aapa.kernels.reference.linear_policy_loss import linear_policy_loss as reference_loss

GLUES = [
    pytest.param(Glue(), id="torch"),
    pytest.param(NativeGlue(), id="native", marks=pytest.mark.skipif(missing() is not None, reason=str(missing()))),
]


def own_loss(logprob, entropy, fields):
    return -fields.advantage_T * logprob - 0.3 * entropy - 0.1 * entropy * logprob


SPECS = {
    "token": TokenLossSpec(clip_low=0.1, clip_high=0.28),
    "sequence": TokenLossSpec(ratio_level="sequence"),
    "cispo and phi": TokenLossSpec(surrogate="cispo", phi=True, kl="k1"),
    "own": TokenLossSpec(custom_loss=own_loss),
    "own, batch": TokenLossSpec(custom_loss=own_loss, custom_scope="batch"),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 8 rows and blocks of 4 columns at the sizes below, so that loops go round."""
    monkeypatch.setattr(plan, "MIN_ROWS", 8)
    monkeypatch.setattr(plan, "MIN_COLUMNS", 4)
    monkeypatch.setitem(plan.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setitem(plan.LEAN_BYTES, "cpu", 1)


def problem(tokens, width, vocab, padding, spec, share, seed=0, dtype=torch.float64):
    """Fields in which a share of the tokens has weight, and some of those no advantage."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    hidden = normal(tokens, width).to(dtype)
    weight = torch.cat([normal(vocab, width), torch.full((padding, width), 9.0, dtype=torch.float64)]).to(dtype)
    target = torch.randint(0, vocab, (tokens,), generator=g)
    temperature = 0.5 + torch.rand(tokens, generator=g)
    logprob, _ = reference_logprob(
        hidden.double(), weight.double(), target, temperature, False, vocab, None, False
    )  # fmt: skip
    weighted = (torch.rand(tokens, generator=g) < share).double()
    rollout = (torch.rand(tokens, generator=g) < 0.7).double() * weighted
    fields = TokenFields(
        target_T=target,
        temperature_T=temperature,
        rl_weight_T=rollout * torch.rand(tokens, generator=g).double(),
        adv_weight_T=rollout * torch.rand(tokens, generator=g).double(),
        sft_weight_T=(weighted - rollout) * 0.3,
        custom_weight_T=None if spec.custom_loss is None else 0.2 * rollout,
        advantage_T=normal(tokens),
        anchor_advantage_T=normal(tokens),
        old_logprob_T=logprob + 0.3 * normal(tokens),
        correction_T=(torch.rand(tokens, generator=g) < 0.6).double(),  # masked: no gradient, but in the metrics
        sequence_T=torch.where(rollout > 0, torch.arange(tokens) // 5, -1),
    )
    return hidden, weight, fields


def outcome(run, hidden, weight, main_grad=None, needs=(True, True)):
    """Loss, gradients of what is needed (None else), metrics."""
    hidden, weight = hidden.clone().requires_grad_(needs[0]), weight.clone().requires_grad_(needs[1])
    loss, metrics = run(hidden, weight, main_grad=main_grad)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad, metrics


def assert_same(got, want, rtol=1e-10, atol=1e-12):
    for ours, theirs in zip(got[:3], want[:3], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    assert got[3].keys() == want[3].keys()
    for name, value in want[3].items():
        torch.testing.assert_close(got[3][name], value, rtol=rtol, atol=atol, msg=name)


def both(glue, fields, spec, vocab, mode="fast"):
    """The reference and the chunk loop as functions of hidden states, weight and main_grad."""

    def reference(hidden, weight, main_grad):
        return reference_loss(hidden, weight, fields, spec, main_grad, vocab, None, False)

    def chunked(hidden, weight, main_grad):
        return chunked_policy.linear_policy_loss(
            glue, hidden, weight, fields, spec, main_grad, vocab, None, False, mode
        )

    return reference, chunked


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_loss_gradients_and_metrics_are_the_references(glue, mode, name, share):
    for tokens, vocab, padding in ((0, 5, 0), (1, 1, 0), (1, 30, 3), (17, 3, 1), (50, 30, 3)):
        hidden, weight, fields = problem(tokens, 6, vocab, padding, SPECS[name], share)
        reference, chunked = both(glue, fields, SPECS[name], vocab, mode)
        want = outcome(reference, hidden, weight)
        assert_same(outcome(chunked, hidden, weight), want)
        accumulator = torch.ones_like(weight)
        assert_same(outcome(chunked, hidden, weight, accumulator)[:2] + want[2:], want)
        torch.testing.assert_close(accumulator - 1, want[2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
def test_a_float32_accumulator_of_float64_gradients(glue, mode):
    hidden, weight, fields = problem(40, 6, 30, 2, SPECS["token"], 1.0)
    reference, chunked = both(glue, fields, SPECS["token"], 30, mode)
    want = outcome(reference, hidden, weight)
    accumulator = torch.ones_like(weight, dtype=torch.float32)
    _, hidden_grad, weight_grad, _ = outcome(chunked, hidden, weight, accumulator)
    torch.testing.assert_close(hidden_grad, want[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(accumulator - 1, want[2].float(), rtol=1e-5, atol=1e-6)
    assert not weight_grad.any()


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_gradients_that_are_needed(glue, mode, needs):
    hidden, weight, fields = problem(40, 6, 30, 2, SPECS["token"], 1.0)
    reference, chunked = both(glue, fields, SPECS["token"], 30, mode)
    want = outcome(reference, hidden, weight)
    got = outcome(chunked, hidden, weight, needs=needs)
    assert [grad is not None for grad in got[1:3]] == list(needs)
    for ours, theirs in zip(got[1:3], want[1:3], strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_rows_without_weight_are_left_out_and_rows_without_gradient_of_two_products():
    """Counted in rows that the glue sees; the results are compared above."""

    class Counting(Glue):
        seen, differentiated = 0, 0

        def statistics(self, logits_RV, column_R, scale_R):
            self.seen += len(logits_RV)
            return super().statistics(logits_RV, column_R, scale_R)

        def gradient(self, logits_RV, column_R, terms, dtype):
            self.differentiated += len(logits_RV)
            return super().gradient(logits_RV, column_R, terms, dtype)

    hidden, weight, fields = problem(64, 6, 30, 0, SPECS["token"], 1.0)
    active = (torch.arange(64) < 24).double()
    trained = (torch.arange(64) < 5).double()
    fields = replace(
        fields,
        rl_weight_T=active,
        adv_weight_T=None,
        sft_weight_T=None,
        old_logprob_T=None,
        correction_T=None,
        advantage_T=trained,
    )
    for mode in ("fast", "lean"):
        glue = Counting()
        _, chunked = both(glue, fields, SPECS["token"], 30, mode)
        _, hidden_grad, _, metrics = outcome(chunked, hidden, weight)
        blocks = 1 if mode == "fast" else 8
        assert (glue.seen, glue.differentiated) == (24 * blocks, 5 * blocks)
        assert (hidden_grad != 0).any(1).tolist() == trained.bool().tolist()
        assert float(metrics["sum/tokens"]) == 24


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
@pytest.mark.parametrize("name", ["token", "cispo and phi", "own"])
def test_a_fifth_of_the_rows_gives_the_gradients_of_all_rows(glue, mode, name):
    """Against autograd through the logits of all rows, none of them left out."""
    tokens, vocab = 100, 30
    hidden, weight, fields = problem(tokens, 6, vocab, 3, SPECS[name], 1.0)
    active = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)) < tokens // 5
    names = ("rl_weight_T", "adv_weight_T", "sft_weight_T", "custom_weight_T")
    weights = {key: getattr(fields, key) for key in names if getattr(fields, key) is not None}
    fields = replace(fields, **{key: value * active for key, value in weights.items()})
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = leaves[0] @ leaves[1][:vocab].t() / fields.temperature_T.double()[:, None]
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss, metrics = policy_loss(log_p.gather(1, fields.target_T[:, None])[:, 0], entropy, fields, SPECS[name])
    loss.backward()
    _, chunked = both(glue, fields, SPECS[name], vocab, mode)
    got = outcome(chunked, hidden, weight)
    assert_same(got, (loss.detach(), leaves[0].grad, leaves[1].grad, metrics))
    assert not got[1][~active].any()
    assert got[1][active].any(1).sum() > 10


@pytest.mark.parametrize("glue", GLUES)
def test_logprob_and_entropy_and_their_gradients(glue):
    for tokens, vocab, padding in ((0, 4, 0), (1, 1, 0), (1, 33, 2), (50, 7, 3)):
        hidden, weight, fields = problem(tokens, 6, vocab, padding, SPECS["token"], 1.0)
        arguments = (fields.target_T, fields.temperature_T, True, vocab, None, False)
        found = []
        for run in (reference_logprob, partial(chunked_logprob.linear_logprob, glue)):
            for share in (1.0, 0.3):  # of the rows has a gradient
                leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
                logprob, entropy = run(*leaves, *arguments)
                mix = torch.linspace(-1, 1, tokens, dtype=torch.float64) * (torch.arange(tokens) < share * tokens)
                for total in (logprob.sum(), entropy.sum(), (mix * (logprob + 2 * entropy)).sum()):
                    found.append((logprob, entropy, *torch.autograd.grad(total, leaves, retain_graph=True)))
        for want, got in zip(found[:6], found[6:], strict=True):
            for ours, theirs in zip(got, want, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
def test_gradcheck(glue, mode):
    hidden, weight, fields = problem(11, 4, 7, 2, SPECS["own"], 1.0)
    # Corrections are constants and clipping has kinks; without old log-probs the ratio has the slope of the log-prob.
    fields = replace(fields, old_logprob_T=fields.old_logprob_T + 0.02)
    _, chunked = both(glue, fields, SPECS["own"], 7, mode)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: chunked(h, w, None)[0], leaves, atol=1e-6)
    arguments = (fields.target_T, fields.temperature_T, True, 7, None, False)
    assert torch.autograd.gradcheck(lambda h, w: chunked_logprob.linear_logprob(glue, h, w, *arguments), leaves)


@pytest.mark.parametrize("glue", GLUES)
@pytest.mark.parametrize("mode", ["fast", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 5), (33, 9), (70, 2500)])
def test_error_is_no_larger_than_the_references_in_the_same_dtype(glue, mode, dtype, sizes):
    """Against float64: loss, gradients and log-probs, with logits up to about 100."""
    hidden, weight, fields = problem(sizes[0], 16, sizes[1], 2, SPECS["own"], 1.0, dtype=dtype)
    hidden = hidden * 5
    reference, chunked = both(glue, fields, SPECS["own"], sizes[1], mode)
    truth = outcome(reference, hidden.double(), weight.double())
    plain = outcome(reference, hidden, weight)
    ours = outcome(chunked, hidden, weight)
    arguments = (fields.target_T, fields.temperature_T, True, sizes[1], None, False)
    truth = (*truth[:3], *reference_logprob(hidden.double(), weight.double(), *arguments))
    plain = (*plain[:3], *reference_logprob(hidden, weight, *arguments))
    ours = (*ours[:3], *chunked_logprob.linear_logprob(glue, hidden, weight, *arguments))
    for got, same, want in zip(ours, plain, truth, strict=True):
        assert got.dtype == same.dtype
        error, allowed = (got - want).abs().max(), (same - want).abs().max()
        assert error <= 1.5 * allowed + 2e-6 * want.abs().max()


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_merged_parts_are_the_whole(parts, seed):
    """Parts may be empty; the target lies in one of them."""
    g = torch.Generator().manual_seed(seed)
    columns = sum(parts)
    if not columns:
        return
    logits = 40 * torch.randn(3, columns, generator=g, dtype=torch.float64)
    target = torch.randint(0, columns, (3,), generator=g)
    stats, start = [], 0
    for size in parts:
        inside = (target >= start) & (target < start + size)
        stats.append(Glue().statistics(logits[:, start : start + size], torch.where(inside, target - start, -1), None))
        start += size
    logprob, entropy, lse = finish(merge(torch.stack(stats)))
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(logprob, log_p.gather(1, target[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(lse, logits.logsumexp(1), rtol=1e-12, atol=1e-12)
