"""Expert responses: the grammar's own texts, conditioned on a prompt's constraints."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from aapa.engine.tasks.mini_if.constraints import (
    Bullets,
    Constraint,
    EndPhrase,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    StartPhrase,
    all_met,
)
from aapa.engine.tasks.mini_if.grammar import Style, sample_style, write

# Most prompts need a handful. One that needs more than this is nearly contradictory ("30 to 35 words; 4
# sentences"): its few texts would hardly be a distribution, so it is no prompt of the task.
_MAX_TRIES: Final = 400


def constrain_style(style: Style, constraints: Sequence[Constraint]) -> Style | None:
    """Overwrite what the constraints decide in a freely drawn style; the rest stays the writer's own.

    Lower case and bullets are used only where they are asked for: they change every sentence, so a response
    that chose them by itself could not be told from a mistake.

    Returns:
        The style, or None where its number of sentences contradicts the constraints.
    """
    fixed: dict[str, Any] = {"lower": False, "bullets": False}
    sentences: int | None = None
    for constraint in constraints:
        match constraint:
            case LowerCase():
                fixed["lower"] = True
            case Bullets(count=count):
                fixed["bullets"], sentences = True, count
            case NoCommas():
                fixed["commas"] = False
            case StartPhrase(phrase=phrase):
                fixed["start"] = phrase
            case EndPhrase(phrase=phrase):
                fixed["end"] = phrase
            case KeywordCount(keyword=keyword, count=count):
                fixed |= {"keyword": keyword, "keyword_count": count, "middles": max(style.middles, count)}
            case SentenceCount(count=count):
                sentences = count
    style = style._replace(**fixed)
    return style if sentences in (None, style.sentence_count) else None


def sample_expert(topic: str, constraints: Sequence[Constraint], rng: Random) -> str | None:
    """Draw one text of the grammar about `topic` that meets `constraints`, by rejection.

    Returns:
        The text, or None where none turned up in a bounded number of tries.
    """
    for _ in range(_MAX_TRIES):
        style = constrain_style(sample_style(rng), constraints)
        text = write(topic, style, rng) if style is not None else None
        if text is not None and all_met(text, constraints, finished=True):
            return text
    return None


def sample_experts(topic: str, constraints: Sequence[Constraint], rng: Random) -> tuple[str, str] | None:
    """Draw two different texts independently of each other and from the same distribution.

    Both are drawn after the prompt is fixed. An expert from which the prompt was derived would follow another
    distribution than its companion, and a discriminator trained on the pair would learn the difference.

    Returns:
        The two texts, or None where no second one turned up in a bounded number of tries.
    """
    first = sample_expert(topic, constraints, rng)
    for _ in range(_MAX_TRIES if first is not None else 0):
        second = sample_expert(topic, constraints, rng)
        if second is None:
            return None
        if first is not None and second != first:
            return first, second
    return None
