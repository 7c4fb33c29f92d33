"""Intervals against published tables, diversity against counts made by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aapa.engine.statistics import (
    distinct_n,
    group_similarity,
    mean_interval,
    paired_difference,
    pairwise_similarity,
    pass_rate,
    student_t_quantile,
    wilson_interval,
    words_of,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_levels_and_no_trial() -> None:
    assert wilson_interval(50, 100, 0.99) == pytest.approx((0.37535, 0.62465), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= high <= 1.0
    if n:
        assert low <= successes / n <= high
    mirrored = wilson_interval(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize(("successes", "n", "level"), [(-1, 4, 0.95), (5, 4, 0.95), (0, -1, 0.95), (1, 2, 1.0)])
def test_wilson_refuses(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, n, level)


# Columns of the usual t table, with the five digits of Abramowitz and Stegun 26.10 and of R's qt.
T_TABLE = [
    (0.975, 1, 12.7062),
    (0.975, 2, 4.30265),
    (0.975, 3, 3.18245),
    (0.975, 4, 2.77645),
    (0.975, 9, 2.26216),
    (0.975, 10, 2.22814),
    (0.975, 30, 2.04227),
    (0.975, 120, 1.97993),
    (0.95, 5, 2.01505),
    (0.995, 2, 9.92484),
    (0.9995, 7, 5.40788),
    (0.975, 10**6, 1.95997),
]


@pytest.mark.parametrize(("probability", "df", "expected"), T_TABLE)
def test_t_quantile_known_values(probability: float, df: int, expected: float) -> None:
    assert student_t_quantile(probability, df) == pytest.approx(expected, rel=1e-5)
    assert student_t_quantile(1 - probability, df) == pytest.approx(-expected, rel=1e-5)


def test_t_quantile_series_and_expansion_meet() -> None:
    for probability in (0.6, 0.9, 0.975, 0.999):
        series, expansion = (student_t_quantile(probability, df) for df in (1000, 1001))
        # Between neighbouring df the quantile moves by about (z³ + z)/4 df²; a seam would be larger.
        assert series - expansion == pytest.approx(0, abs=1.2e-5)
        assert series > expansion


def test_t_median_is_zero() -> None:
    assert student_t_quantile(0.5, 7) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("probability", "df"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_t_quantile_refuses(probability: float, df: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        student_t_quantile(probability, df)


def test_mean_interval_of_three_seeds() -> None:
    estimate = mean_interval([0.40, 0.44, 0.45])
    # mean .43, s = 0.0264575, half = 4.30265 · s / √3
    assert estimate == pytest.approx((0.43, 0.364276, 0.495724), abs=1e-6)


def test_mean_interval_of_one_value_has_no_bounds() -> None:
    value, low, high = mean_interval([0.3])
    assert value == 0.3
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_paired_difference_removes_what_pairs_share() -> None:
    a, b = [0.50, 0.70, 0.90], [0.40, 0.59, 0.81]
    paired = paired_difference(a, b)
    assert paired.value == pytest.approx(0.10)
    # differences .10 .11 .09: s = 0.01
    assert paired.high - paired.value == pytest.approx(4.30265 * 0.01 / math.sqrt(3), abs=1e-6)
    assert paired.low > 0 > mean_interval(a).low - mean_interval(b).high
    with pytest.raises(ValueError, match=r"^b: expected 3 values"):
        paired_difference(a, [0.1])


def test_pass_rate() -> None:
    estimate = pass_rate([True] * 50 + [False] * 50)
    assert estimate == pytest.approx((0.5, 0.4038, 0.5962), abs=6e-5)
    with pytest.raises(ValueError, match=r"verdicts of 0 or 1, got 0\.5"):
        pass_rate([1, 0.5])
    with pytest.raises(ValueError, match="at least one"):
        pass_rate([])


def test_words() -> None:
    assert words_of("Don't STOP—the e-mail, naïve_1!") == ["don't", "stop", "the", "e", "mail", "naïve_1"]
    assert words_of("茶は well") == ["茶", "は", "well"]
    assert words_of(" …!? ") == []


def test_distinct_n_counts() -> None:
    # bigrams: a b, b a, a b | b a → 2 distinct of 4; none across the texts
    assert distinct_n(["a b a b", "b a"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a b c"], 1) == 1.0
    assert math.isnan(distinct_n(["a", ""], 2))


def test_distinct_n_budget_takes_the_length_away() -> None:
    short = ["one two three four"]
    long = ["one two three four one two three four one two three four"]
    assert distinct_n(long, 2) < distinct_n(short, 2)
    assert distinct_n(long, 2, words=4) == distinct_n(short, 2, words=4) == 1.0


def test_distinct_n_budget_ends_inside_a_text() -> None:
    # Six words: "a b c", then "a b c" of the second text; bigrams a b, b c twice over.
    assert distinct_n(["a b c", "a b c x y z"], 2, words=6) == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match=r"^words: expected"):
        distinct_n(["a b"], 2, words=1)
    with pytest.raises(ValueError, match=r"^n: expected"):
        distinct_n(["a b"], 0)


def test_pairwise_similarity() -> None:
    # {ab, bc} and {ab, bd}: one shared of three; both against {xy}: none
    assert pairwise_similarity(["a b c", "A b d"]) == pytest.approx(1 / 3)
    assert pairwise_similarity(["a b c", "a b d", "x y"]) == pytest.approx(1 / 9)
    assert pairwise_similarity(["same words here"] * 4) == 1.0
    assert pairwise_similarity(["one", "one"]) == 1.0
    assert pairwise_similarity(["one", "two"]) == 0.0
    assert pairwise_similarity(["", "?"]) == 1.0
    assert math.isnan(pairwise_similarity(["alone"]))


def test_group_similarity_leaves_out_groups_of_one() -> None:
    assert group_similarity([["a b", "a b"], ["a b", "x y"], ["alone"]]) == pytest.approx(0.5)
    assert math.isnan(group_similarity([["alone"]]))
