"""Means, scores and advantages of sentences against their torch references."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICE, EXACT, in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import SentenceHead, anchor_advantages, reference_head, sentence_scores
from aapa.kernels.triton.search import pieces
from aapa.kernels.triton.segment_mean import LENGTH, segment_means

ORDER = st.sampled_from(["normal", "reversed", "shuffled"])
LENGTHS = st.lists(st.sampled_from([1, 2, 7, 8, 9, 127, 128, 129, 300]), max_size=6)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def offsets(counts, dtype=torch.int32):
    return torch.tensor([0, *counts]).cumsum(0).to(DEVICE, dtype)


@settings(max_examples=12)
@given(lengths=LENGTHS, width=st.sampled_from([1, 16, 100, 300]), order=ORDER, seed=st.integers(0, 100))
def test_means_of_sentences(lengths, width, order, seed):
    hidden_TD = normal(sum(lengths), width, seed=seed)
    with in_order(order):
        got = segment_means(hidden_TD, offsets(lengths, torch.int64 if seed % 2 else torch.int32))
    want = [part.mean(0) for part in hidden_TD.split(lengths)]
    assert got.shape == (len(lengths), width)
    torch.testing.assert_close(got, torch.stack(want) if want else got, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_does_not_depend_on_its_neighbours_to_the_last_bit(dtype):
    lengths = [3, 200, 1, 40]
    hidden_TD = normal(sum(lengths), 24, dtype=dtype)
    with in_order("shuffled"):
        whole = segment_means(hidden_TD, offsets(lengths))
        alone = [segment_means(part, offsets([len(part)])) for part in hidden_TD.split(lengths)]
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.cat(alone))
    truth = torch.stack([part.double().mean(0) for part in hidden_TD.split(lengths)])
    torch.testing.assert_close(whole.double(), truth, rtol=1e-6, atol=1e-6)


def test_a_sentence_of_ten_thousand_tokens_beside_short_ones(monkeypatch):
    monkeypatch.setattr("aapa.kernels.triton.segment_mean.ROWS", 64)  # fewer steps for the interpreter
    lengths = [1, 10_000, 2]
    hidden_TD = normal(sum(lengths), 8, dtype=torch.float32)
    with in_order():
        got = segment_means(hidden_TD, offsets(lengths))
    truth = torch.stack([part.double().mean(0) for part in hidden_TD.split(lengths)])
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)


@given(lengths=st.lists(st.integers(0, 400), min_size=1, max_size=8))
def test_pieces_have_numbers_of_their_own(lengths):
    taken, begin = [], 0
    for k, n in enumerate(lengths):
        first = begin // LENGTH + k
        taken += range(first, first + -(-n // LENGTH))
        begin += n
    assert len(set(taken)) == len(taken)
    assert all(0 <= number < pieces(begin, len(lengths), LENGTH) for number in taken)


def test_log_probs_and_means_of_a_frozen_trunk():
    hidden_TD, weight_VD = normal(40, 12), normal(30, 12, seed=1)
    target_T = torch.arange(40, device=DEVICE) % 29
    cu_sents = offsets([5, 30, 4, 1])
    for weight, target, cu in ((weight_VD, target_T, cu_sents), (None, None, cu_sents), (weight_VD, target_T, None)):
        wanted = reference_head(hidden_TD, weight, target, cu, temperature=0.7, vocab_size=29, backend="reference")
        with in_order("reversed"):
            got = reference_head(hidden_TD, weight, target, cu, temperature=0.7, vocab_size=29, backend="triton")
        for mine, theirs in zip(got, wanted, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=EXACT, atol=EXACT)


def sentence_head(hidden_size, rank, width, seed, tau=0.7):
    draw = lambda *shape: normal(*shape, seed=seed + len(shape) + sum(shape))  # noqa: E731
    return SentenceHead(
        draw(rank, hidden_size), draw(rank), draw(width, 4 * rank) / 4, draw(width), draw(width), draw(1)[0], tau
    )


@settings(max_examples=10)
@given(
    groups=st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 16, 17, 40]), st.sampled_from([0, 1, 5, 32, 33])), min_size=1, max_size=4
    ),
    rank=st.sampled_from([1, 3, 16, 20]),
    width=st.sampled_from([1, 5, 32, 40]),
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_scores_of_ragged_groups(groups, rank, width, order, seed):
    sentences, experts = [s for s, _ in groups], [e for _, e in groups]
    arguments = (
        normal(sum(sentences), 6, seed=seed),
        offsets(sentences),
        normal(sum(experts), 6, seed=seed + 1),
        offsets(experts, torch.int64),
        sentence_head(6, rank, width, seed),
    )
    with in_order(order):
        got = sentence_scores(*arguments, backend="triton")
    want = sentence_scores(*arguments, backend="reference")
    torch.testing.assert_close(got, want, rtol=100 * EXACT, atol=100 * EXACT)


def test_what_has_no_kernel_is_refused_by_name_and_otherwise_left_to_the_reference():
    sentence_SD, expert_ED = normal(4, 6).requires_grad_(), normal(2, 6)
    arguments = (sentence_SD, offsets([4]), expert_ED, offsets([2]), sentence_head(6, 3, 4, 0))
    with pytest.raises(ValueError, match="backend: expected 'reference' where a gradient is wanted"):
        sentence_scores(*arguments, backend="triton")
    assert sentence_scores(*arguments).requires_grad
    arguments = (sentence_SD.detach(), *arguments[1:4], sentence_head(6, 129, 4, 0))
    with pytest.raises(ValueError, match="projected size is above 128"):
        sentence_scores(*arguments, backend="triton")
    assert sentence_scores(*arguments).shape == (4,)


RESPONSE = st.tuples(
    st.lists(st.sampled_from([1, 2, 5, 300]), max_size=4),  # lengths of sentences
    st.sampled_from([-7, 0, 10**12]),  # group
    st.sampled_from([0.0, 1.0, 0.25, float("nan")]),  # reward
    st.booleans(),  # anchored
)


@settings(max_examples=8)
@given(
    responses=st.lists(RESPONSE, min_size=1, max_size=8),
    aggregation=st.sampled_from(["dapo", "grpo", "dr_grpo"]),
    scale=st.sampled_from(["group", "batch", "none"]),
    credit=st.sampled_from(["sentence", "return"]),
    partial=st.booleans(),
    order=ORDER,
    seed=st.integers(0, 1000),
)
def test_advantages(responses, aggregation, scale, credit, partial, order, seed):
    lengths = [n for sentences, *_ in responses for n in sentences]
    score_S = 4 * normal(len(lengths), seed=seed)
    anchored_S = (torch.arange(len(lengths), device=DEVICE) + seed) % 3 > 0 if partial else None
    if anchored_S is not None:
        score_S = torch.where(anchored_S, score_S, torch.nan)
    reward_N = torch.tensor([r for _, _, r, _ in responses], dtype=torch.float64, device=DEVICE)
    arguments = (
        score_S,
        reward_N,
        offsets(lengths),
        offsets([sum(sentences) for sentences, *_ in responses]),
        torch.tensor([g for _, g, _, _ in responses], device=DEVICE),
    )
    options = {"mean": 0.3, "std": 1.7, "clip": 1.5, "aggregation": aggregation, "scale": scale, "credit": credit}
    options |= {"discount": 0.8, "anchored_S": anchored_S}
    options["anchored_N"] = torch.tensor([a for *_, a in responses], device=DEVICE) if seed % 2 else None
    wanted = anchor_advantages(*arguments, **options, backend="reference")
    with in_order(order):
        got = anchor_advantages(*arguments, **options, backend="triton")
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=EXACT, atol=EXACT)


def test_many_responses_and_equal_rewards(monkeypatch):
    monkeypatch.setattr("aapa.kernels.triton.anchor_advantages.RESPONSES", 16)
    count = 40
    group_N = torch.arange(count, device=DEVICE) % 7
    reward_N = torch.where(group_N == 3, 0.1, torch.rand(count, generator=torch.Generator().manual_seed(0)).to(DEVICE))
    arguments = (normal(count, dtype=torch.float32), reward_N, offsets([1] * count), offsets([1] * count), group_N)
    got = anchor_advantages(*arguments, mean=0.0, std=1.0, backend="triton")
    wanted = anchor_advantages(*arguments, mean=0.0, std=1.0, backend="reference")
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not got[0][group_N == 3].any()


def test_offsets_that_do_not_refine_and_scores_that_are_not_finite():
    score_S, reward_N, group_N = normal(2), normal(2), torch.zeros(2, dtype=torch.long, device=DEVICE)
    options = {"mean": 0.0, "std": 1.0, "backend": "triton"}
    with pytest.raises(ValueError, match="cu_sents: expected offsets that refine"):
        anchor_advantages(score_S, reward_N, offsets([3, 2]), offsets([2, 3]), group_N, **options)
    score_S[1] = torch.nan
    _, anchor_T = anchor_advantages(score_S, reward_N, offsets([3, 2]), offsets([3, 2]), group_N, **options)
    assert anchor_T.isnan().all()  # its own tokens, and those it is the baseline of


def test_nothing():
    empty = normal(0)
    none = torch.zeros(0, dtype=torch.long, device=DEVICE)
    for part in anchor_advantages(empty, empty, offsets([]), offsets([]), none, mean=0.0, std=1.0, backend="triton"):
        assert part.shape == (0,)
