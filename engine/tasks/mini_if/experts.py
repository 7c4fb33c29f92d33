"""Expert responses: the grammar's own texts, conditioned on a prompt's constraints."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from aapa.engine.tasks.mini_if.constraints import Constraint, all_met
from aapa.engine.tasks.mini_if.form import Bullets, Paragraphs, Postscript, Quotation, Sections, Title
from aapa.engine.tasks.mini_if.grammar import Style, sample_style, write
from aapa.engine.tasks.mini_if.lexicon import Lexicon, lexicon_of
from aapa.engine.tasks.mini_if.page import Layout
from aapa.engine.tasks.mini_if.wording import (
    EndPhrase,
    KeywordAtLeast,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    StartPhrase,
)

# Most prompts need a handful. One that needs more than this is nearly contradictory ("30 to 35 words; 4
# sentences"): its few texts would hardly be a distribution, so it is no prompt of the task.
_MAX_TRIES: Final = 400


def constrain_style(style: Style, constraints: Sequence[Constraint]) -> Style | None:
    """Overwrite what the constraints decide in a freely drawn style; the rest stays the writer's own.

    Lower case, bullets and layouts are used only where they are asked for: they change every sentence or the
    page, so a response that chose them by itself could not be told from a mistake.

    Returns:
        The style, or None where its number of sentences contradicts the constraints.
    """
    fixed: dict[str, Any] = {"lower": False, "bullets": False}
    layout: dict[str, Any] = {}
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
            case KeywordAtLeast(keyword=keyword, count=least):
                count = max(style.keyword_count, least)
                fixed |= {"keyword": keyword, "keyword_count": count, "middles": max(style.middles, count)}
            case SentenceCount(count=count):
                sentences = count
            case Sections(count=count):
                layout |= {"separation": "sections", "parts": count}
            case Paragraphs(count=count):
                layout |= {"separation": "paragraphs", "parts": count}
            case Title():
                layout["title"] = True
            case Postscript():
                layout["postscript"] = True
            case Quotation():
                layout["quoted"] = True
    style = style._replace(**fixed, layout=Layout(**layout))
    return style if sentences in (None, style.sentence_count) else None


def sample_expert(
    topic: str,
    constraints: Sequence[Constraint],
    rng: Random,
    *,
    violated: Constraint | None = None,
    templates: Lexicon | None = None,
) -> str | None:
    """Draw one text of the grammar about `topic` that meets `constraints`, by rejection.

    Args:
        topic: what the text is about.
        constraints: what it meets.
        rng: the stream to draw from.
        violated: what it does not meet, for a wrong expert.
        templates: the style whose sentences it is written in, if not the topic's own, for a wrong expert.

    Returns:
        The text, or None where none turned up in a bounded number of tries.
    """
    lexicon = lexicon_of(topic)
    for _ in range(_MAX_TRIES):
        style = constrain_style(sample_style(rng, lexicon), constraints)
        text = write(topic, style, rng, templates) if style is not None else None
        if text is None or not all_met(text, constraints, finished=True):
            continue
        if violated is None or not violated.check(text):
            return text
    return None


def sample_experts(
    topic: str,
    constraints: Sequence[Constraint],
    rng: Random,
    *,
    violated: Constraint | None = None,
    templates: Lexicon | None = None,
) -> tuple[str, str] | None:
    """Draw two different texts independently of each other and from the same distribution.

    Both are drawn after the prompt is fixed. An expert from which the prompt was derived would follow another
    distribution than its companion, and a discriminator trained on the pair would learn the difference.

    Arguments are those of `sample_expert`.

    Returns:
        The two texts, or None where no second one turned up in a bounded number of tries.
    """
    first = sample_expert(topic, constraints, rng, violated=violated, templates=templates)
    for _ in range(_MAX_TRIES if first is not None else 0):
        second = sample_expert(topic, constraints, rng, violated=violated, templates=templates)
        if second is None:
            return None
        if first is not None and second != first:
            return first, second
    return None
