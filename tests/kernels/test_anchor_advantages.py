"""anchor_advantages against (3.1), (3.2) and the group advantage, in plain Python loops."""

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aapa.kernels import anchor_advantages

# A response: token count of each of its sentences, in order.
Lengths = list[list[int]]


def offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def run(lengths: Lengths, scores: list[float], rewards: list[float], groups: list[int], **options: Any) -> Any:
    """The operation, with tokens given back as one list a response."""
    options = {"mean": 0.0, "std": 1.0, **options}
    cu_seqlens = offsets([sum(response) for response in lengths])
    both = anchor_advantages(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(rewards, dtype=torch.float64),
        offsets([n for response in lengths for n in response]),
        cu_seqlens,
        torch.tensor(groups),
        **options,
    )
    return tuple([part.tolist() for part in x.split(cu_seqlens.diff().tolist())] for x in both)


def straight_line_anchor(
    lengths: Lengths,
    scores: list[float],
    groups: list[int],
    anchored: list[bool],
    mean: float,
    std: float,
    clip: float,
    by_sequence: bool,
    discount: float | None,
) -> list[list[float]]:
    """(3.1) and (3.2) token by token."""
    left = list(scores)
    a = [[max(-clip, min(clip, (left.pop(0) - mean) / std)) for _ in response] for response in lengths]
    tokens = [[x for x, n in zip(a_i, n_i, strict=True) for _ in range(n)] for a_i, n_i in zip(a, lengths, strict=True)]
    takes_part = [anchored[i] and sum(response) > 0 for i, response in enumerate(lengths)]
    result = []
    for i, response in enumerate(lengths):
        if not takes_part[i]:
            result.append([0.0] * sum(response))
            continue
        others = [j for j in range(len(lengths)) if j != i and takes_part[j] and groups[j] == groups[i]]
        if not others:
            b = 0.0
        elif by_sequence:
            b = statistics.fmean(statistics.fmean(tokens[j]) for j in others)
        else:
            b = statistics.fmean([x for j in others for x in tokens[j]])
        out = []
        for k, n in enumerate(response):
            if discount is None:
                value = a[i][k] - b
            else:
                value = math.fsum(discount ** (later - k) * (a[i][later] - b) for later in range(k, len(response)))
            out += [value] * n
        result.append(out)
    return result


def straight_line_advantage(rewards: list[float], groups: list[int], scale: str, eps: float) -> list[float]:
    valid = [r for r in rewards if not math.isnan(r)]
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)]
        if math.isnan(reward) or len(members) == 1:
            result.append(0.0)
            continue
        centred = reward - statistics.fmean(members)
        spread = {"group": members, "batch": valid, "none": None}[scale]
        result.append(centred if spread is None else centred / (statistics.stdev(spread) + eps))
    return result


cases = st.lists(
    st.tuples(
        st.lists(st.integers(1, 4), max_size=4),  # sentence lengths
        st.sampled_from([-7, 0, 10**12]),  # group
        st.sampled_from([0.0, 1.0, 0.25, math.nan]),  # reward
        st.booleans(),  # anchored
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(
    cases,
    st.sampled_from(["dapo", "grpo", "dr_grpo"]),
    st.sampled_from(["group", "batch", "none"]),
    st.sampled_from([None, 1.0, 0.6]),
    st.integers(0, 10_000),
)
def test_agrees_with_the_formulas(
    responses: list[Any], aggregation: str, scale: str, discount: float | None, seed: int
) -> None:
    lengths, groups, rewards, anchored = (list(column) for column in zip(*responses, strict=True))
    scores = torch.randn(sum(map(len, lengths)), generator=torch.Generator().manual_seed(seed)) * 4
    advantage, anchor = run(
        lengths,
        scores.tolist(),
        rewards,
        groups,
        mean=0.3,
        std=1.5,
        clip=2.0,
        aggregation=aggregation,
        scale=scale,
        credit="sentence" if discount is None else "return",
        discount=1.0 if discount is None else discount,
        anchored_N=torch.tensor(anchored),
    )
    expected = straight_line_anchor(
        lengths, scores.tolist(), groups, anchored, 0.3, 1.5, 2.0, aggregation == "grpo", discount
    )
    expected_reward = straight_line_advantage(rewards, groups, scale, 1e-4)
    for i, response in enumerate(lengths):
        assert anchor[i] == pytest.approx(expected[i], abs=1e-12)
        assert advantage[i] == pytest.approx([expected_reward[i]] * sum(response), rel=1e-9, abs=1e-12)


def test_lengths_10_and_90_under_sequence_aggregation() -> None:
    """Scores +1 and -1: where a loss weighs responses alike, a baseline over tokens is biased."""
    lengths, scores, groups = [[10], [90], [20]], [1.0, -1.0, 0.0], [0, 0, 0]
    rewards = [0.0, 0.0, 0.0]
    _, by_sequence = run(lengths, scores, rewards, groups, aggregation="grpo")
    assert by_sequence == [[1.0 - (-0.5)] * 10, [-1.0 - 0.5] * 90, [0.0] * 20]
    # The loss's weights are 1 / (N |y_i|), so its tokens' advantages must balance.
    assert math.fsum(math.fsum(tokens) / len(tokens) for tokens in by_sequence) == pytest.approx(0.0, abs=1e-12)
    _, by_token = run(lengths, scores, rewards, groups, aggregation="dapo")
    assert by_token[2] == pytest.approx([0.8] * 20)
    assert by_token[0] == pytest.approx([1.0 + 90 / 110] * 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=2, max_size=6), st.integers(0, 999))
def test_sequence_weighted_anchor_sums_to_zero_in_a_group(lengths: Lengths, seed: int) -> None:
    scores = torch.randn(sum(map(len, lengths)), generator=torch.Generator().manual_seed(seed)).tolist()
    _, anchor = run(lengths, scores, [0.0] * len(lengths), [3] * len(lengths), aggregation="grpo")
    assert math.fsum(math.fsum(tokens) / len(tokens) for tokens in anchor) == pytest.approx(0.0, abs=1e-10)


def test_a_baseline_leaves_its_own_response_out() -> None:
    lengths, groups, rewards = [[2, 1], [4], [3]], [0, 0, 0], [1.0, 0.0, 0.0]
    _, before = run(lengths, [0.5, -0.5, 1.0, 0.2], rewards, groups)
    _, after = run(lengths, [1.5, -2.0, 1.0, 0.2], rewards, groups)
    # Changing response 0's scores moves its tokens by exactly the change, whatever its baseline is made of.
    moved = [y - x for x, y in zip(before[0], after[0], strict=True)]
    assert moved == pytest.approx([1.0, 1.0, -1.5])


def test_clip_is_in_standard_deviations() -> None:
    _, anchor = run([[1], [1]], [100.0, -100.0], [0.0, 0.0], [0, 1], mean=1.0, std=2.0, clip=1.5)
    assert anchor == [[1.5], [-1.5]]


def test_responses_without_an_anchor_are_left_out() -> None:
    nan = math.nan
    _, anchor = run(
        [[2], [3], [], [1]],
        [1.0, nan, 0.25],
        [0.0] * 4,
        [0, 0, 0, 0],
        anchored_N=torch.tensor([True, False, True, True]),
    )
    assert anchor == [[0.75, 0.75], [0.0, 0.0, 0.0], [], [-0.75]]
    _, alone = run([[2], [3]], [1.0, nan], [0.0, 0.0], [0, 0], anchored_N=torch.tensor([True, False]))
    assert alone == [[1.0, 1.0], [0.0, 0.0, 0.0]]


def test_equal_rewards_give_zero_and_leave_the_anchor_alone() -> None:
    advantage, anchor = run([[1]] * 3, [0.0, 1.0, 2.0], [0.3] * 3, [5, 5, 5])
    assert advantage == [[0.0]] * 3
    assert anchor == [[-1.5], [0.0], [1.5]]


def test_masked_rewards() -> None:
    nan = math.nan
    advantage, _ = run([[1]] * 5, [0.0] * 5, [1.0, nan, 0.0, nan, 1.0], [0, 0, 0, 1, 1])
    spread = statistics.stdev([1.0, 0.0]) + 1e-4
    assert advantage == [[pytest.approx(0.5 / spread)], [0.0], [pytest.approx(-0.5 / spread)], [0.0], [0.0]]
    everything, anchor = run([[1], [2]], [1.0, 2.0], [nan, nan], [0, 0])
    assert everything == [[0.0], [0.0, 0.0]]
    assert anchor == [[-1.0], [1.0, 1.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nothing_and_empty_responses(scale: str) -> None:
    assert run([], [], [], [], scale=scale) == ([], [])
    assert run([[], []], [], [1.0, 0.0], [0, 0], scale=scale) == ([[], []], [[], []])
    assert run([[1]], [0.5], [1.0], [0], scale=scale, credit="return") == ([[0.0]], [[0.5]])


def test_no_gradient_reaches_scores_or_rewards() -> None:
    score_S, reward_N = torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True)
    cu = torch.tensor([0, 1, 2])
    both = anchor_advantages(score_S, reward_N, cu, cu, torch.zeros(2, dtype=torch.int64), mean=0.0, std=1.0)
    assert [x.requires_grad for x in both] == [False, False]
    assert [x.dtype for x in both] == [torch.float32, torch.float32]


def test_other_groups_do_not_matter() -> None:
    lengths, scores, rewards = [[2, 1], [3], [1]], [0.5, -1.0, 2.0, 0.3], [1.0, 0.0, 1.0]
    alone = run(lengths, scores, rewards, [4, 4, 4], credit="return", discount=0.9)
    mixed = run(
        [[5], *lengths, [2]],
        [2.5, *scores, -3.0],
        [0.5, *rewards, 0.0],
        [9, 4, 4, 4, 9],
        credit="return",
        discount=0.9,
    )
    for part, whole in zip(alone, mixed, strict=True):
        assert whole[1:4] == [pytest.approx(tokens, abs=1e-12) for tokens in part]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "mean"}, "^aggregation: expected one of dapo, grpo, dr_grpo, got 'mean'"),
        ({"scale": "std"}, "^scale"),
        ({"credit": "token"}, "^credit"),
        ({"std": 0.0}, "^std: expected a positive number, got 0.0"),
        ({"clip": math.nan}, "^clip"),
        ({"std": math.nan}, "^std"),
        ({"mean": math.nan}, "^mean: expected a finite number, got nan"),
        ({"eps": 0.0}, "^eps: expected a positive number, got 0.0"),
        ({"eps": -1e-4}, "^eps"),
        ({"discount": math.nan}, r"^discount: expected a number in \[0, 1\], got nan"),
        ({"discount": -0.5}, "^discount"),
        ({"anchored_N": torch.ones(2, dtype=torch.int64)}, "^anchored_N: expected torch.bool, got torch.int64"),
        ({"anchored_S": torch.ones(2)}, "^anchored_S: expected torch.bool"),
        ({"anchored_N": torch.ones(3, dtype=torch.bool)}, r"^anchored_N: expected shape \(2,\)"),
    ],
)
def test_refusals_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([[1], [1]], [0.0, 0.0], [0.0, 0.0], [0, 0], **options)


def test_refusals_of_shapes_and_offsets() -> None:
    def call(scores: int, rewards: int, cu_sents: list[Any], cu_seqlens: list[Any] | None = None) -> None:
        anchor_advantages(
            torch.zeros(scores),
            torch.zeros(rewards),
            torch.tensor(cu_sents),
            torch.tensor([0, 2, 4] if cu_seqlens is None else cu_seqlens),
            torch.zeros(2, dtype=torch.int64),
            mean=0.0,
            std=1.0,
        )

    with pytest.raises(ValueError, match=r"^score_S: expected shape \(2,\), got \(3,\)"):
        call(3, 2, [0, 2, 4])
    with pytest.raises(ValueError, match="^reward_N"):
        call(2, 1, [0, 2, 4])
    with pytest.raises(ValueError, match="^cu_sents: expected offsets that refine"):
        call(2, 2, [0, 3, 4])
    with pytest.raises(ValueError, match="^cu_sents"):
        call(1, 2, [0, 2])
    for wrong in ([1, 2, 4], [0, 2, 3], [0, 5, 4], [0, 0, 4], [0.0, 2.0, 4.0], []):
        with pytest.raises(ValueError, match="^cu_sents: expected "):
            call(2, 2, wrong)
    for wrong in ([1, 2, 4], [0, 5, 4], [0.0, 2.0, 4.0], [[0, 2, 4]], []):
        with pytest.raises(ValueError, match="^cu_seqlens: expected "):
            call(2, 2, [0, 2, 4], wrong)
