"""The rewards of mini-IF as functions with TRL's signature, for `rewards` in a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aapa.engine.tasks.mini_if.constraints import all_met, from_column, proxy_met

ConstraintColumn = Sequence[Sequence[Mapping[str, Any]]]


def true_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    constraints: ConstraintColumn,
    finished: Sequence[bool],
    **columns: Any,
) -> list[float | None]:
    """Return 1 for every finished completion that meets all its constraints exactly, else 0.

    Args:
        prompts: not looked at; the constraints come as data.
        completions: decoded responses without the end-of-sequence token.
        constraints: for each completion the objects of `Example.columns["constraints"]`.
        finished: whether each response ended by itself rather than at the length limit.
        columns: further columns, not looked at.
    """
    return [
        float(all_met(text, map(from_column, asked), finished=ended))
        for text, asked, ended in zip(completions, constraints, finished, strict=True)
    ]


def proxy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    constraints: ConstraintColumn,
    **columns: Any,
) -> list[float | None]:
    """Return 1 for every completion that passes the gameable checkers, finished or not, else 0.

    Arguments are those of `true_reward`.
    """
    return [
        float(proxy_met(text, map(from_column, asked))) for text, asked in zip(completions, constraints, strict=True)
    ]
