"""Intervals, paired differences and diversity of texts, in the standard library alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

# Ideographs and kana are written without spaces: each counts as a word of its own.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")

# Above this the series below is long and the expansion in 1/df is exact to nine digits.
_SERIES_LIMIT = 1000


class Estimate(NamedTuple):
    """A figure with its confidence interval; the bounds are NaN where one value alone gives none."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927), sound near 0 and 1 and for small n.

    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = successes/n; no trial gives (0, 1).

    Raises:
        ValueError: a count is negative, more successes than trials, or the level is not inside (0, 1).
    """
    _check_level(level)
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"successes: expected 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Exact where rounding would leave a hair: no success reaches down to 0, no failure up to 1.
    low = (middle - half) / scale if successes else 0.0
    high = (middle + half) / scale if successes < n else 1.0
    return low, high


def student_t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t distribution with `df` whole degrees of freedom.

    Inverts the finite series of the distribution function (Abramowitz and Stegun 26.7.3, 26.7.4) by
    bisection; above 1000 degrees of freedom it is the expansion around the normal quantile (26.7.5).

    Raises:
        ValueError: probability not inside (0, 1) or df below 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number inside (0, 1), got {probability}")
    if df < 1:
        raise ValueError(f"df: expected at least 1 degree of freedom, got {df}")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, df)
    if df > _SERIES_LIMIT:
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df * df)
    target = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central_t_mass(middle, df) < target:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(low)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of independent values (one per seed, say) with Student's t interval; one value has no interval.

    Raises:
        ValueError: no value, or the level is not inside (0, 1).
    """
    _check_level(level)
    if not values:
        raise ValueError("values: expected at least one, got none")
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = student_t_quantile(0.5 + level / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of a_i − b_i with its t interval, for values that belong together (same seed, same prompt).

    Raises:
        ValueError: the lengths differ, there is no pair, or the level is not inside (0, 1).
    """
    if len(a) != len(b):
        raise ValueError(f"b: expected {len(a)} values, one for each of a, got {len(b)}")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level)


def pass_rate(passed: Iterable[float], level: float = 0.95) -> Estimate:
    """Share of responses that passed, with its Wilson interval; one response per prompt is taken for granted.

    Raises:
        ValueError: a verdict is neither 0 nor 1, or there is none.
    """
    verdicts = [float(verdict) for verdict in passed]
    if not verdicts:
        raise ValueError("passed: expected at least one verdict, got none")
    if strange := [verdict for verdict in verdicts if verdict not in (0.0, 1.0)]:
        raise ValueError(f"passed: expected verdicts of 0 or 1, got {strange[0]}")
    successes = int(sum(verdicts))
    return Estimate(successes / len(verdicts), *wilson_interval(successes, len(verdicts), level))


def words_of(text: str) -> list[str]:
    """Words of a text, case folded and without punctuation; an ideograph is a word of its own."""
    return [word.casefold() for word in _WORD.findall(text)]


def distinct_n(texts: Sequence[str], n: int, words: int | None = None) -> float:
    """Distinct word n-grams over all n-grams (distinct-n of Li et al. 2016), within texts, never across.

    The share falls as the sample grows, so a policy that writes longer would look less diverse. `words` is
    the budget: the texts are read in order and only that many words count. Compare policies at one budget
    that each of them fills; with fewer words all are used and the figure is flattered. No n-gram gives NaN.

    Raises:
        ValueError: n below 1 or a budget below n.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if words is not None and words < n:
        raise ValueError(f"words: expected a budget of at least n = {n} words, got {words}")
    left = math.inf if words is None else words
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        found = words_of(text)
        found = found[: int(min(left, len(found)))]
        left -= len(found)
        grams = _ngrams(found, n)
        seen.update(grams)
        total += len(grams)
        if left <= 0:
            break
    return len(seen) / total if total else math.nan


def pairwise_similarity(texts: Sequence[str]) -> float:
    """Mean Jaccard similarity of the word bigrams over all pairs of a group; fewer than two texts give NaN.

    A text of one word counts as that word, two texts without any word as equal.
    """
    sets = [_similarity_set(text) for text in texts]
    pairs = [_jaccard(a, b) for a, b in combinations(sets, 2)]
    return fmean(pairs) if pairs else math.nan


def group_similarity(groups: Iterable[Sequence[str]]) -> float:
    """Mean of `pairwise_similarity` over the groups of two or more texts; NaN where there is none."""
    values = [pairwise_similarity(group) for group in groups if len(group) > 1]
    return fmean(values) if values else math.nan


def _central_t_mass(angle: float, df: int) -> float:
    """P(|T| < tan(angle)·sqrt(df)) for Student's T with df degrees of freedom."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _similarity_set(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return set(_ngrams(words, min(2, len(words)))) if words else set()


def _jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number inside (0, 1), got {level}")
