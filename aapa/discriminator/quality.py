"""How good a fitted discriminator is on held-out prompts."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

BINS, HISTOGRAM_LIMIT = 40, 4.0


@dataclass(frozen=True)
class QualityCard:
    """Held-out figures of a discriminator, stored beside it.

    An AUC is the chance that a positive scores above a negative, 0.5 for a useless score; NaN where either is
    missing.

    Attributes:
        auc: against all negatives.
        rollouts: second expert against genuine rollouts.
        other_prompts: against expert sentences of other prompts.
        corruptions: per kind of corruption.
        auc_length_matched, rollouts_length_matched, other_prompts_length_matched, corruptions_length_matched:
            the same over pairs of sentences of equal length in tokens.
        rollouts_by_response, rollouts_by_response_length_matched: second expert against genuine rollouts, each judged
            by the mean score of its sentences, as a run weighs a response; over all pairs, and over pairs of as many
            sentences.
        saturation: share of held-out rollout sentences with |a| > 3 before clipping (3.1).
        counts: how many prompts and sentences the figures rest on; "leave_one_out" counts the positives that
            are not of a second expert.
        histograms: of each role, counts of calibrated scores before clipping in `BINS` equal bins over
            [-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT], the outermost with what lies beyond.
    """

    auc: float
    rollouts: float
    other_prompts: float
    corruptions: dict[str, float]
    auc_length_matched: float
    rollouts_length_matched: float
    other_prompts_length_matched: float
    corruptions_length_matched: dict[str, float]
    saturation: float
    rollouts_by_response: float = math.nan
    rollouts_by_response_length_matched: float = math.nan
    counts: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-able values; NaN becomes null."""
        return {
            name: {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else _plain(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> QualityCard:
        """The inverse of `to_json`."""
        back: dict[str, Any] = {}
        for f in fields(cls):
            if f.name not in values and f.default is not MISSING:
                continue  # a card of before this figure
            value = values[f.name]
            if isinstance(value, dict):
                back[f.name] = {k: math.nan if v is None else v for k, v in value.items()}
            else:
                back[f.name] = math.nan if value is None else value
        return cls(**back)


def auc(positive_N: Tensor, negative_M: Tensor) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN without either."""
    return _auc_by_group(positive_N, negative_M, torch.zeros_like(positive_N), torch.zeros_like(negative_M))


def auc_length_matched(positive_N: Tensor, length_N: Tensor, negative_M: Tensor, length_M: Tensor) -> float:
    """The same over the pairs of equal length."""
    return _auc_by_group(positive_N, negative_M, length_N, length_M)


def _auc_by_group(positive_N: Tensor, negative_M: Tensor, group_N: Tensor, group_M: Tensor) -> float:
    wins, pairs = 0.0, 0
    for group in torch.unique(torch.cat([group_N, group_M])):
        above = positive_N[group_N == group].double()
        below = negative_M[group_M == group].double().sort().values
        less = torch.searchsorted(below, above, right=False).sum()
        up_to = torch.searchsorted(below, above, right=True).sum()
        wins += float(less + up_to) / 2
        pairs += above.numel() * below.numel()
    return wins / pairs if pairs else math.nan


def score_histogram(calibrated: Tensor) -> list[int]:
    """Counts of calibrated scores as in `QualityCard.histograms`."""
    inside = calibrated.double().clamp(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT)
    return torch.histc(inside, BINS, -HISTOGRAM_LIMIT, HISTOGRAM_LIMIT).long().tolist()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
