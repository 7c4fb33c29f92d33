"""Rewards that depend on the length of a response."""

from __future__ import annotations


def overlong_penalty(length: int, limit: int, buffer: int, penalty: float) -> float:
    """What is added to the reward of a response near the length limit: 0, then linearly down to -penalty at the limit.

    -penalty * clip((length - (limit - buffer)) / buffer, 0, 1); 0 for a buffer of 0.

    Args:
        length, limit, buffer: tokens.
        penalty: at least 0.

    Source: soft overlong punishment of DAPO (Yu et al. 2025).
    """
    if buffer == 0:
        return 0.0
    return -penalty * min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)
