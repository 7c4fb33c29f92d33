"""The grammar read backwards: whether a text is one that an expert could have written about a topic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from aapa.engine.tasks.mini_if.grammar import (
    MAX_KEYWORD_COUNT,
    MAX_MIDDLES,
    MAX_WORDS,
    Expansions,
    render,
    topic_grammar,
)
from aapa.engine.tasks.mini_if.lexicon import lexicon_of
from aapa.engine.tasks.mini_if.page import PARTS, Page, set_out, take_apart
from aapa.engine.tasks.mini_if.text import words
from aapa.engine.tasks.mini_if.variants import EASY, Difficulty

# One letter per sentence: start phrase, opening, middle, keyword middle, closing, end phrase.
_ORDER: Final = re.compile(rf"s?o[mk]{{1,{MAX_MIDDLES}}}ce?")
_BULLET: Final = "- "


@cache
def sentence_roles(topic: str) -> Mapping[str, str]:
    """Map every sentence of `topic` (lower case, no full stop) to its role's letter in `s o m k c e`.

    Raises:
        ValueError: the grammar has no such topic.
    """
    grammar, lexicon = topic_grammar(topic), lexicon_of(topic)
    expansions = [("o", grammar.openings), ("m", grammar.middles), ("c", grammar.closings)]
    expansions += [("k", keyword) for keyword in grammar.keyword_middles.values()]
    roles = {sentence: role for role, templates in expansions for expansion in templates for sentence in expansion}
    return roles | dict.fromkeys(lexicon.start_phrases, "s") | dict.fromkeys(lexicon.end_phrases, "e")


def in_language(text: str, topic: str, difficulty: Difficulty = EASY) -> bool:
    """Say whether the grammar can write `text` about `topic`: exactly the support of all experts together.

    The order of the roles, distinct sentences, one keyword at most, the length, the layout and the case all
    count. Whether the response was finished does not: a text that breaks off in a sentence fails by itself.

    Args:
        text: the response.
        topic: of either style; the text has to be in that style.
        difficulty: of the prompts; easy ones ask for no other layouts than prose and bullets.

    Raises:
        ValueError: the grammar has no such topic.
    """
    roles = sentence_roles(topic)
    if difficulty.layouts and not text.startswith(_BULLET):
        sentences = _page_sentences(text, topic, difficulty)
    else:
        sentences = _line_sentences(text)
    if sentences is None or len(set(sentences)) < len(sentences) or len(words(text)) > MAX_WORDS:
        return False
    if not _ORDER.fullmatch("".join(roles.get(sentence, "?") for sentence in sentences)):
        return False
    carriers = [sentence for sentence in sentences if roles[sentence] == "k"]
    keywords = {word for sentence in carriers for word in words(sentence) if word in lexicon_of(topic).keywords}
    return len(carriers) <= MAX_KEYWORD_COUNT and len(keywords) <= 1


def _line_sentences(text: str) -> Sequence[str] | None:
    """Return the sentences, in lower case, of one line of prose or of bullets; None if it is neither."""
    bullets = text.startswith(_BULLET)
    parts = text.removeprefix(_BULLET).split(".\n- ") if bullets else text.split(". ")
    sentences = [part.lower() for part in parts]
    sentences[-1] = sentences[-1].removesuffix(".")
    # Cutting above is lenient; the layout is right if and only if rendering the sentences gives the text.
    return sentences if render(sentences, lower=text == text.lower(), bullets=bullets) == text else None


def _page_sentences(text: str, topic: str, difficulty: Difficulty) -> Sequence[str] | None:
    """Return the sentences, in lower case, of a page that a prompt can ask for; None if it is no such page."""
    page, lower = take_apart(text), text == text.lower()
    if set_out(page, lower=lower) != text or lower + page.layout.features > difficulty.most:
        return None
    return [sentence for group in page.groups for sentence in group] if _is_page(page, topic) else None


def _is_page(page: Page, topic: str) -> bool:
    grammar = topic_grammar(topic)
    parts = (1,) if page.separation == "prose" else PARTS
    return (
        len(page.groups) in parts
        and (page.title is None or _among(page.title, grammar.titles))
        and (page.postscript is None or _among(page.postscript, grammar.postscripts))
    )


def _among(text: str, expansions: Expansions) -> bool:
    return any(text in expansion for expansion in expansions)
