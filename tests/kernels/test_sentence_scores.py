"""sentence_scores against equation (2.1) in plain Python arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aapa.kernels import SentenceHead, sentence_scores

HIDDEN, RANK, WIDTH = 5, 3, 4


def random_head(seed: int = 0, tau: float = 0.7) -> SentenceHead:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return SentenceHead(draw(RANK, HIDDEN), draw(RANK), draw(WIDTH, 4 * RANK), draw(WIDTH), draw(WIDTH), draw(), tau)


def offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def straight_line(u: list[float], experts: list[list[float]], head: SentenceHead) -> float:
    """(2.1) for one sentence."""
    if not experts:
        return 0.0
    weight = {name: value.tolist() for name, value in head.tensors().items()}

    def project(x: list[float]) -> list[float]:
        return [dot(row, x) + b for row, b in zip(weight["projection_RD"], weight["offset_R"], strict=True)]

    pu, pe = project(u), [project(e) for e in experts]
    raw = [math.exp(dot(pu, e) / head.tau) for e in pe]
    alpha = [r / math.fsum(raw) for r in raw]
    m = [math.fsum(a * e[r] for a, e in zip(alpha, pe, strict=True)) for r in range(RANK)]
    features = pu + m + [a - b for a, b in zip(pu, m, strict=True)] + [a * b for a, b in zip(pu, m, strict=True)]
    score = weight["output_bias"]
    for row, bias, out in zip(
        weight["hidden_weight_HF"], weight["hidden_bias_H"], weight["output_weight_H"], strict=True
    ):
        z = dot(row, features) + bias
        score += out * z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return score


def ragged(sentences: list[int], experts: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(sum(sentences), HIDDEN, generator=generator, dtype=torch.float64)
    e = torch.randn(sum(experts), HIDDEN, generator=generator, dtype=torch.float64)
    return u, offsets(sentences), e, offsets(experts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6), st.integers(0, 10_000))
def test_equation_2_1_on_ragged_groups(groups: list[tuple[int, int]], seed: int) -> None:
    sentences, experts = [s for s, _ in groups], [e for _, e in groups]
    u, cu_group, e, cu_expert = ragged(sentences, experts, seed)
    head = random_head(seed)
    expected = [
        straight_line(u[k].tolist(), e[cu_expert[g] : cu_expert[g + 1]].tolist(), head)
        for g in range(len(groups))
        for k in range(int(cu_group[g]), int(cu_group[g + 1]))
    ]
    score_S = sentence_scores(u, cu_group, e, cu_expert, head)
    assert score_S.dtype == torch.float64
    torch.testing.assert_close(score_S, torch.tensor(expected, dtype=torch.float64).view(-1), rtol=1e-11, atol=1e-11)


def test_a_group_does_not_depend_on_the_others() -> None:
    u, cu_group, e, cu_expert = ragged([3, 1, 0, 4], [2, 5, 1, 3], seed=3)
    head = random_head()
    together = sentence_scores(u, cu_group, e, cu_expert, head)
    for g in range(4):
        own, experts = slice(*cu_group[g : g + 2].tolist()), slice(*cu_expert[g : g + 2].tolist())
        alone = sentence_scores(u[own], offsets([len(u[own])]), e[experts], offsets([len(e[experts])]), head)
        torch.testing.assert_close(together[own], alone, rtol=0, atol=1e-12)


def test_groups_without_experts_score_zero_and_spoil_nothing() -> None:
    u, cu_group, e, cu_expert = ragged([2, 2, 1], [0, 3, 0], seed=4)
    u.requires_grad_()
    score_S = sentence_scores(u, cu_group, e, cu_expert, random_head())
    assert score_S[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert (score_S[2:4] != 0).all()
    score_S.sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert not u.grad[[0, 1, 4]].any()


def test_large_logits_do_not_overflow() -> None:
    u, cu_group, e, cu_expert = ragged([2], [3], seed=5)
    head = random_head(tau=1e-4)
    score_S = sentence_scores(1e3 * u, cu_group, 1e3 * e, cu_expert, head)
    # So low a temperature picks the best expert alone.
    project = head.projection_RD
    best = ((1e3 * u @ project.T + head.offset_R) @ (1e3 * e @ project.T + head.offset_R).T).argmax(1)
    picked = torch.cat([1e3 * e[best[k] : best[k] + 1] for k in range(2)])
    alone = sentence_scores(1e3 * u, offsets([1, 1]), picked, offsets([1, 1]), head)
    torch.testing.assert_close(score_S, alone, rtol=1e-10, atol=0)


def test_gradients_of_the_reference() -> None:
    u, cu_group, e, cu_expert = ragged([2, 1, 1], [3, 0, 2], seed=6)
    weights = [value.requires_grad_() for value in random_head().tensors().values()]

    def run(u: Tensor, e: Tensor, *weights: Tensor) -> Tensor:
        return sentence_scores(u, cu_group, e, cu_expert, SentenceHead(*weights, tau=0.7))

    assert torch.autograd.gradcheck(run, (u.requires_grad_(), e.requires_grad_(), *weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    u, cu_group, e, cu_expert = ragged([4, 3], [2, 5], seed=7)
    u, e, head = u.to(dtype), e.to(dtype), random_head().to(dtype=torch.float32)
    got = sentence_scores(u, cu_group, e, cu_expert, head)
    exact = sentence_scores(u.double(), cu_group, e.double(), cu_expert, head.to(dtype=torch.float64))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_views_and_nothing_to_score() -> None:
    u, cu_group, e, cu_expert = ragged([3, 2], [2, 2], seed=8)
    head = random_head()
    wide = torch.full((5, 2 * HIDDEN), torch.nan, dtype=torch.float64)
    wide[:, ::2] = u
    view = wide[:, ::2]
    assert torch.equal(
        sentence_scores(view, cu_group, e, cu_expert, head), sentence_scores(u, cu_group, e, cu_expert, head)
    )
    assert sentence_scores(u[:0], offsets([0, 0]), e, cu_expert, head).shape == (0,)
    assert sentence_scores(u[:0], offsets([]), e[:0], offsets([]), head).shape == (0,)


def test_refusals_name_the_argument() -> None:
    u, cu_group, e, cu_expert = ragged([3], [2], seed=9)
    head = random_head()
    with pytest.raises(ValueError, match=r"^sentence_SD: expected shape \[\*, 5\], got \(3, 4\)"):
        sentence_scores(u[:, :4], cu_group, e, cu_expert, head)
    with pytest.raises(ValueError, match="^expert_ED"):
        sentence_scores(u, cu_group, e[0], cu_expert, head)
    with pytest.raises(ValueError, match="^cu_expert"):
        sentence_scores(u, cu_group, e, offsets([1, 1]), head)
    with pytest.raises(ValueError, match="^tau"):
        random_head(tau=0.0)
    with pytest.raises(ValueError, match="^offset_R"):
        SentenceHead(**{**head.tensors(), "offset_R": torch.zeros(1)}, tau=1.0)


def test_a_score_that_is_not_finite_is_not_taken_for_no_expert() -> None:
    u, cu_group, e, cu_expert = ragged([2, 1, 1], [2, 1, 0], seed=1)
    head = random_head()
    finite = sentence_scores(u, cu_group, e, cu_expert, head)
    for rows, row, lost in ((u, 0, [True, False, False, False]), (e, 1, [True, True, False, False])):
        before = rows[row].clone()
        rows[row, 2] = torch.nan
        score_S = sentence_scores(u, cu_group, e, cu_expert, head)
        assert score_S.isnan().tolist() == lost
        assert torch.equal(score_S[~torch.tensor(lost)], finite[~torch.tensor(lost)])
        rows[row] = before
    head.projection_RD[0, 0] = torch.nan
    assert sentence_scores(u, cu_group, e, cu_expert, head).isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize("wrong", [[1, 4], [0, 3], [0, 5], [0, 5, 4], [], [0.0, 4.0], [[0, 4]]])
def test_offsets_that_do_not_tile_are_refused(wrong: list[int]) -> None:
    u, cu_group, e, cu_expert = ragged([4], [4], seed=2)
    with pytest.raises(ValueError, match="^cu_group: expected "):
        sentence_scores(u, torch.tensor(wrong), e, cu_expert, random_head())
    with pytest.raises(ValueError, match="^cu_expert: expected "):
        sentence_scores(u, cu_group, e, torch.tensor(wrong), random_head())


def test_a_backend_is_refused_where_a_gradient_is_wanted_as_elsewhere() -> None:
    u, cu_group, e, cu_expert = ragged([4], [4], seed=2)
    for backend in ("bogus", "native"):
        with pytest.raises(ValueError, match="^backend: expected one of auto, triton,"):
            sentence_scores(u.requires_grad_(), cu_group, e, cu_expert, random_head(), backend=backend)


def test_autocast_rounds_nothing() -> None:
    u, cu_group, e, cu_expert = ragged([3, 2], [2, 2], seed=3)
    arguments = u.float(), cu_group, e.float(), cu_expert, random_head().to(dtype=torch.float32)
    want = sentence_scores(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        got = sentence_scores(*arguments)
    assert torch.equal(got, want)
