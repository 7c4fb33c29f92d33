"""The rewards of the reasoning task as functions with TRL's signature, for `rewards` in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aapa.engine.tasks.reasoning.answers import is_mentioned, is_right


def answer_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    dataset: Sequence[str],
    answer: Sequence[str],
    finished: Sequence[bool],
    **columns: Any,
) -> list[float | None]:
    """Return 1 for every finished completion whose last `Answer:` line is right, else 0.

    Args:
        prompts: not looked at; the answers come as data.
        completions: decoded responses without the end-of-sequence token.
        dataset: of reasoning-gym, for each completion; it knows how an answer is scored.
        answer: the right one for each completion.
        finished: whether each response ended by itself rather than at the length limit.
        columns: further columns, not looked at.
    """
    return [
        float(ended and is_right(text, name, right))
        for text, name, right, ended in zip(completions, dataset, answer, finished, strict=True)
    ]


def mention_reward(
    prompts: Sequence[str], completions: Sequence[str], *, answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """Return 1 for every completion in which the right number appears anywhere, finished or not, else 0.

    Arguments are those of `answer_reward`.
    """
    return [float(is_mentioned(text, right)) for text, right in zip(completions, answer, strict=True)]
