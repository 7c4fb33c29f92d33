"""Scoring without stored logits, against the product and the statistics apart."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICE, in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels.chunked.glue import Glue
from aapa.kernels.triton import fused_scoring, linear_logprob


def problem(tokens, hidden_size, vocab, seed, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(seed)
    hidden_TD, weight_VD = (torch.randn(n, hidden_size, generator=g).to(DEVICE, dtype) for n in (tokens, vocab))
    column_T = torch.randint(-1, vocab, (tokens,), generator=g).to(DEVICE)
    return hidden_TD, weight_VD, column_T, (0.5 + torch.rand(tokens, generator=g)).to(DEVICE)


@settings(max_examples=12)
@given(
    tokens=st.sampled_from([1, 15, 16, 40, 300]),
    hidden_size=st.sampled_from([16, 32, 48]),
    vocab=st.sampled_from([1, 31, 32, 100, 260]),
    scaled=st.booleans(),
    order=st.sampled_from(["normal", "reversed", "shuffled"]),
    seed=st.integers(0, 100),
)
def test_statistics_equal_those_of_stored_logits(tokens, hidden_size, vocab, scaled, order, seed):
    hidden_TD, weight_VD, column_T, scale_T = problem(tokens, hidden_size, vocab, seed)
    scale_T = scale_T if scaled else None
    with in_order(order):
        got = fused_scoring.scored_rows(hidden_TD, weight_VD, column_T, scale_T)
    # Products of bfloat16 are exact in float64, so this is the truth.
    wide_T = None if scale_T is None else scale_T.double()
    truth = Glue().statistics(hidden_TD.double() @ weight_VD.double().t(), column_T, wide_T)
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("halves", [False, True])
def test_both_ways_to_fold_a_tile(halves, monkeypatch):
    tile = fused_scoring.Tile(16, 32, 16, halves=halves, warps=4, stages=1)
    monkeypatch.setattr(fused_scoring, "tile_of", lambda device: tile)
    hidden_TD, weight_VD, column_T, scale_T = problem(40, 48, 100, 0)
    with in_order("shuffled"):
        got = fused_scoring.scored_rows(hidden_TD, weight_VD, column_T, scale_T)
    truth = Glue().statistics(hidden_TD.double() @ weight_VD.double().t(), column_T, scale_T.double())
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4)


def test_nothing_to_score():
    for tokens, vocab in ((0, 7), (3, 0)):
        hidden_TD, weight_VD, _, _ = problem(tokens, 4, max(1, vocab), 0)
        stats_4T = fused_scoring.scored_rows(
            hidden_TD, weight_VD[:vocab], torch.full((tokens,), -1, device=DEVICE), None
        )
        assert stats_4T.shape == (4, tokens)
        assert (stats_4T[0] == float("-inf")).all()
        assert not stats_4T[1:].any()


def test_it_is_taken_only_without_gradients_and_where_it_pays(monkeypatch):
    hidden_TD, weight_VD, column_T, temperature_T = problem(20, 16, 50, 1)
    target_T = column_T.clamp(min=0)
    arguments = (hidden_TD, weight_VD, target_T, temperature_T, True, 45, None, False)
    plain = linear_logprob.linear_logprob(*arguments)
    used = []
    kernel = fused_scoring.scored_rows
    monkeypatch.setattr(fused_scoring, "scored_rows", lambda *inputs: used.append(1) or kernel(*inputs))
    monkeypatch.setattr(fused_scoring, "pays", lambda hidden, weight: True)
    with in_order():
        fused = linear_logprob.linear_logprob(*arguments)
    assert used == [1]
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    linear_logprob.linear_logprob(hidden_TD.clone().requires_grad_(), *arguments[1:])
    assert used == [1]


def test_the_rule(monkeypatch):
    """It pays below D = 4 x 184 e / (1 - e), and never where nothing was measured."""
    monkeypatch.setattr(fused_scoring, "tile_of", lambda device: fused_scoring.TILES["sm90"])
    hidden, weight = (torch.empty(1, 4096, dtype=torch.bfloat16, device="meta") for _ in range(2))
    assert not fused_scoring.pays(hidden, weight)  # no GPU
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert not fused_scoring.pays(hidden, weight)
    assert fused_scoring.pays(hidden, weight, efficiency=0.85)
    assert not fused_scoring.pays(hidden, weight, efficiency=0.84)
    assert not fused_scoring.pays(hidden.float(), weight, efficiency=0.9)
    assert not fused_scoring.pays(hidden[:, :1000], weight[:, :1000], efficiency=0.9)
    monkeypatch.setitem(fused_scoring.MEASURED_EFFICIENCY, (9, 0), 0.9)
    assert fused_scoring.pays(hidden, weight)
