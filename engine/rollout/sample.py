"""Drawing tokens, the same in every engine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniform_numbers(seeds: list[int], count: int, device: torch.device) -> Tensor:
    """[rows, count] float64 random numbers, those of a row from its seed alone."""
    draws = np.stack([np.random.default_rng(seed).random(count) for seed in seeds])
    return torch.from_numpy(draws).to(device)


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Each row's next token and its log-prob at the sampling temperature.

    The token is the inverse of the cumulative distribution at the row's uniform number. Another batch, layout or engine
    changes logits by rounding alone, so it changes a token only where the number falls within that rounding of a
    boundary.
    """
    logprob_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    cdf_BV = logprob_BV.double().exp().cumsum(-1)
    threshold_B1 = uniform_B[:, None] * cdf_BV[:, -1:]
    token_B1 = torch.searchsorted(cdf_BV, threshold_B1, right=True).clamp_(max=cdf_BV.shape[1] - 1)
    return token_B1[:, 0], logprob_BV.gather(1, token_B1)[:, 0]
