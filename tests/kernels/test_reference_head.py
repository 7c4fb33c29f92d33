"""`reference_head` against a loop over sentences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import linear_logprob, reference_head


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_means_and_logprobs(lengths, width, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), width, generator=g, dtype=torch.float64)
    weight = torch.randn(5, width, generator=g, dtype=torch.float64)
    target = torch.randint(0, 5, (sum(lengths),), generator=g)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    logprob, means = reference_head(hidden, weight, target, cu)
    expected = torch.stack(
        [hidden[a:b].sum(0) / (b - a) for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)]
    )
    torch.testing.assert_close(means, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(logprob, linear_logprob(hidden, weight, target)[0])


def test_a_sentence_does_not_depend_on_its_neighbours():
    hidden = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    _, packed = reference_head(hidden, None, None, torch.tensor([0, 7, 19, 30], dtype=torch.int32))
    _, alone = reference_head(hidden[7:19], None, None, torch.tensor([0, 12], dtype=torch.int32))
    assert torch.equal(packed[1], alone[0])


def test_no_gradient_flows():
    hidden = torch.randn(4, 3, requires_grad=True)
    logprob, means = reference_head(
        hidden, torch.randn(5, 3), torch.zeros(4, dtype=torch.long), torch.tensor([0, 4], dtype=torch.int32)
    )
    assert not logprob.requires_grad
    assert not means.requires_grad


def test_bfloat16_is_averaged_in_float32():
    hidden = torch.full((1000, 1), 1.0, dtype=torch.bfloat16)
    hidden[0] = 257.0
    _, means = reference_head(hidden, None, None, torch.tensor([0, 1000], dtype=torch.int32))
    assert means.dtype == torch.float32
    assert float(means) == pytest.approx((999 + float(hidden[0])) / 1000)


@pytest.mark.parametrize("cu", [[0, 3], [1, 4], [0, 2, 2, 4], [0, 3, 2, 4]])
def test_offsets_that_do_not_tile_are_refused(cu):
    with pytest.raises(ValueError, match="cu_sents: expected increasing offsets"):
        reference_head(torch.zeros(4, 2), None, None, torch.tensor(cu, dtype=torch.int32))


def test_a_head_needs_its_targets():
    with pytest.raises(ValueError, match="target_T: expected together"):
        reference_head(torch.zeros(4, 2), torch.zeros(3, 2), None, None)


@pytest.mark.parametrize("cu", [[], [0.0, 1.5, 4.0], [[0, 4]]])
def test_what_is_no_list_of_offsets_is_refused(cu):
    with pytest.raises(ValueError, match="^cu_sents: expected "):
        reference_head(torch.zeros(4, 2), None, None, torch.tensor(cu))


def test_hidden_states_have_two_dimensions():
    with pytest.raises(ValueError, match=r"^hidden_TD: expected two dimensions \[T, D\], got shape \(1, 4, 2\)"):
        reference_head(torch.zeros(1, 4, 2), None, None, torch.tensor([0, 1]))
