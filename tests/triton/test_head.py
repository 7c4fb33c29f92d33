"""The head's kernels: rows of logits against the eager glue, and the whole head against the torch reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import DEVICE, EXACT, SPECS, in_order, token_fields
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import linear_logprob, linear_policy_loss
from aapa.kernels.chunked.glue import Glue, RowTerms, finish, merge
from aapa.kernels.triton.logit_rows import MOST_COLUMNS, logits_gradient, row_statistics

ORDER = st.sampled_from(["normal", "reversed", "shuffled"])
MODE = st.sampled_from(["fast", "lean"])


def rows(count, columns, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)

    column_R = torch.randint(-1, columns, (count,), generator=g).to(DEVICE)
    logits_RV = 3 * normal(count, columns)
    # The eager glue needs the row's own log-sum-exp and entropy.
    stats_4R = Glue().statistics(logits_RV, column_R, scale_R := 0.5 + normal(count).abs())
    _, entropy_R, lse_R = finish(stats_4R)
    return logits_RV, column_R, RowTerms(column_R, scale_R, lse_R, entropy_R, normal(count), normal(count))


@settings(max_examples=15)
@given(
    count=st.integers(1, 5),
    columns=st.sampled_from([1, 2, 15, 16, 17, 100, MOST_COLUMNS, MOST_COLUMNS + 1]),
    scaled=st.booleans(),
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_statistics_of_rows(count, columns, scaled, order, seed):
    logits_RV, column_R, terms = rows(count, columns, seed)
    scale_R = terms.scale_R if scaled else None
    with in_order(order):
        got = row_statistics(logits_RV, column_R, scale_R)
    torch.testing.assert_close(got, Glue().statistics(logits_RV, column_R, scale_R), rtol=EXACT, atol=EXACT)


@settings(max_examples=15)
@given(
    count=st.integers(1, 5),
    columns=st.sampled_from([1, 2, 15, 16, 17, 100, MOST_COLUMNS + 1]),
    scaled=st.booleans(),
    entropy=st.booleans(),
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_gradient_of_rows(count, columns, scaled, entropy, order, seed):
    logits_RV, column_R, terms = rows(count, columns, seed)
    if not scaled:
        terms = dataclasses.replace(terms, scale_R=None)
    if not entropy:
        terms = dataclasses.replace(terms, entropy_grad_R=None)
    want = Glue().gradient(logits_RV.clone(), column_R, terms, torch.float64)
    with in_order(order):
        got = logits_gradient(logits_RV, column_R, terms, torch.float64)
    torch.testing.assert_close(got, want, rtol=EXACT, atol=EXACT)
    assert got.data_ptr() == logits_RV.data_ptr()


@pytest.mark.parametrize("columns", [16, 100, MOST_COLUMNS + 100])
def test_gradient_in_half_precision_lies_in_the_memory_of_the_logits(columns):
    logits_RV, column_R, terms = rows(3, columns, 1, torch.float32)
    want = Glue().gradient(logits_RV.clone(), column_R, terms, torch.float32)
    with in_order("reversed"):
        got = logits_gradient(logits_RV, column_R, terms, torch.bfloat16)
    assert got.shape == (3, columns) and got.dtype == torch.bfloat16
    assert got.data_ptr() == logits_RV.data_ptr()
    # A difference in the last bit of float32 may round the other way.
    torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=1e-6)
    assert (got == want.bfloat16()).float().mean() > 0.99


def test_rows_without_columns_and_parts_of_a_vocabulary():
    logits_RV, column_R, terms = rows(4, 50, 2)
    whole = row_statistics(logits_RV, column_R, terms.scale_R)
    parts = []
    for first, last in ((0, 17), (17, 17), (17, 50)):
        inside = (column_R >= first) & (column_R < last)
        part_RV = logits_RV[:, first:last]
        parts.append(row_statistics(part_RV, torch.where(inside, column_R - first, -1), terms.scale_R))
    torch.testing.assert_close(merge(torch.stack(parts)), whole, rtol=EXACT, atol=EXACT)


def head(tokens, hidden_size, vocab, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    _, _, fields = token_fields(tokens, seed)
    target_T = torch.randint(0, vocab, (tokens,), generator=g).to(DEVICE)
    temperature_T = (0.5 + torch.rand(tokens, generator=g).double()).to(DEVICE)
    hidden_TD, weight_VD = (
        torch.randn(size, hidden_size, generator=g, dtype=torch.float64).to(DEVICE, dtype) for size in (tokens, vocab)
    )
    return hidden_TD, weight_VD, dataclasses.replace(fields, target_T=target_T, temperature_T=temperature_T)


def outcome(hidden_TD, weight_VD, fields, spec, **options):
    inputs = [x.clone().requires_grad_() for x in (hidden_TD, weight_VD)]
    loss, metrics = linear_policy_loss(*inputs, fields, spec, **options)
    return loss.detach(), *torch.autograd.grad(loss, inputs), metrics


@settings(max_examples=12)
@given(
    tokens=st.sampled_from([1, 2, 17, 130]),
    hidden_size=st.integers(1, 8),
    vocab=st.integers(2, 30),
    name=st.sampled_from(sorted(SPECS)),
    mode=MODE,
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_loss_gradients_and_metrics_of_the_head(tokens, hidden_size, vocab, name, mode, order, seed):
    hidden_TD, weight_VD, fields = head(tokens, hidden_size, vocab, seed)
    padded_VD = torch.cat([weight_VD, torch.full_like(weight_VD[:2], 9.0)])
    options = {"vocab_size": vocab, "mode": mode}
    wanted = outcome(hidden_TD, padded_VD, fields, SPECS[name], backend="reference", **options)
    with in_order(order):
        got = outcome(hidden_TD, padded_VD, fields, SPECS[name], backend="triton", **options)
    for mine, theirs in zip(got[:3], wanted[:3], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=100 * EXACT, atol=100 * EXACT)
    assert got[3].keys() == wanted[3].keys()
    for key, value in got[3].items():
        torch.testing.assert_close(value, wanted[3][key], rtol=100 * EXACT, atol=100 * EXACT, msg=key)


def test_a_masked_head_and_one_without_tokens():
    hidden_TD, weight_VD, fields = head(20, 4, 9, 0)
    zero_T = torch.zeros_like(fields.rl_weight_T)
    masked = dict.fromkeys(("rl_weight_T", "kl_weight_T", "sft_weight_T", "adv_weight_T"), zero_T)
    for some, part in ((20, dataclasses.replace(fields, **masked)), (0, fields.rows(slice(0, 0)))):
        with in_order():
            loss, *grads, metrics = outcome(hidden_TD[:some], weight_VD, part, SPECS["clip"], backend="triton")
        assert loss.item() == 0.0
        assert not any(grad.any() for grad in grads)
        assert metrics["sum/tokens"].item() == 0.0


def test_hidden_states_that_are_not_finite_are_seen():
    hidden_TD, weight_VD, fields = head(6, 4, 9, 1)
    for bad in (float("nan"), float("inf")):
        hidden_TD[2, 1] = bad
        loss, hidden_grad, weight_grad, _ = outcome(hidden_TD, weight_VD, fields, SPECS["clip"], backend="triton")
        assert not torch.isfinite(loss)
        assert not torch.isfinite(hidden_grad[2]).any()
        assert not torch.isfinite(weight_grad).all()


def test_main_grad_and_a_loss_of_ones_own():
    hidden_TD, weight_VD, fields = head(40, 6, 11, 4)
    spec = dataclasses.replace(SPECS["clip"], custom_loss=lambda logp, entropy, f: f.advantage_T * logp - 0.1 * entropy)
    fields = dataclasses.replace(fields, custom_weight_T=torch.rand_like(fields.rl_weight_T))
    wanted = outcome(hidden_TD, weight_VD, fields, spec, backend="reference")
    main_grad = torch.ones_like(weight_VD)
    with in_order("shuffled"):
        loss, hidden_grad, dummy, metrics = outcome(
            hidden_TD, weight_VD, fields, spec, main_grad=main_grad, backend="triton"
        )
    assert not dummy.any()
    torch.testing.assert_close(loss, wanted[0], rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(hidden_grad, wanted[1], rtol=100 * EXACT, atol=EXACT)
    torch.testing.assert_close(main_grad - 1, wanted[2], rtol=100 * EXACT, atol=100 * EXACT)
    torch.testing.assert_close(metrics["loss/custom"], wanted[3]["loss/custom"], rtol=EXACT, atol=EXACT)


@settings(max_examples=8)
@given(
    tokens=st.sampled_from([0, 1, 33]),
    hidden_size=st.integers(1, 8),
    vocab=st.integers(1, 40),
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_logprob_and_entropy_with_both_gradients(tokens, hidden_size, vocab, order, seed):
    hidden_TD, weight_VD, fields = head(tokens, hidden_size, vocab, seed)
    mix_T = torch.linspace(-1, 1, tokens, dtype=torch.float64, device=DEVICE)
    results = []
    for backend in ("reference", "triton"):
        inputs = [x.clone().requires_grad_() for x in (hidden_TD, weight_VD)]
        with in_order(order):
            logprob_T, entropy_T = linear_logprob(
                *inputs, fields.target_T, temperature=fields.temperature_T, entropy=True, backend=backend
            )
            grads = torch.autograd.grad((mix_T * logprob_T + (1 - mix_T) * entropy_T).sum(), inputs)
        results.append((logprob_T.detach(), entropy_T.detach(), *grads))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=100 * EXACT, atol=100 * EXACT)


def test_gradcheck():
    hidden_TD, weight_VD, fields = head(4, 3, 6, 3)
    inputs = [x.requires_grad_() for x in (hidden_TD, weight_VD)]
    torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, fields.target_T, entropy=True, backend="triton"), inputs, fast_mode=True
    )


@pytest.mark.parametrize("name", ["clip", "sequence"])
@pytest.mark.parametrize("mode", ["fast", "lean"])
def test_gradcheck_of_the_loss(name, mode):
    hidden_TD, weight_VD, fields = head(5, 3, 6, 3)
    if name == "sequence":  # whose gradient in adv is that of the token's own log-prob, which no difference shows
        fields = dataclasses.replace(fields, adv_weight_T=None)
    inputs = [x.requires_grad_() for x in (hidden_TD, weight_VD)]
    torch.autograd.gradcheck(
        lambda h, w: linear_policy_loss(h, w, fields, SPECS[name], mode=mode, backend="triton")[0],
        inputs,
        fast_mode=True,
    )


def test_results_are_the_same_bits_in_every_order():
    hidden_TD, weight_VD, fields = head(70, 8, 50, 9, torch.float32)
    found = []
    for order in ("normal", "reversed", "shuffled"):
        with in_order(order):
            found.append(outcome(hidden_TD, weight_VD, fields, SPECS["clip"], backend="triton")[:3])
    for again in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], again, strict=True))
