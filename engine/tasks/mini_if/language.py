"""The grammar read backwards: whether a text is one that an expert could have written about a topic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

from aapa.engine.tasks.mini_if.grammar import (
    END_PHRASES,
    KEYWORDS,
    MAX_KEYWORD_COUNT,
    MAX_MIDDLES,
    MAX_WORDS,
    START_PHRASES,
    render,
    topic_grammar,
)
from aapa.engine.tasks.mini_if.text import words

# One letter per sentence: start phrase, opening, middle, keyword middle, closing, end phrase.
_ORDER: Final = re.compile(rf"s?o[mk]{{1,{MAX_MIDDLES}}}ce?")
_BULLET: Final = "- "


@cache
def sentence_roles(topic: str) -> Mapping[str, str]:
    """Map every sentence of `topic` (lower case, no full stop) to its role's letter in `s o m k c e`.

    Raises:
        ValueError: the grammar has no such topic.
    """
    grammar = topic_grammar(topic)
    expansions = [("o", grammar.openings), ("m", grammar.middles), ("c", grammar.closings)]
    expansions += [("k", keyword) for keyword in grammar.keyword_middles.values()]
    roles = {sentence: role for role, templates in expansions for expansion in templates for sentence in expansion}
    return roles | dict.fromkeys(START_PHRASES, "s") | dict.fromkeys(END_PHRASES, "e")


def in_language(text: str, topic: str) -> bool:
    """Say whether the grammar can write `text` about `topic`: exactly the support of all experts together.

    The order of the roles, distinct sentences, one keyword at most, the length, the layout and the case all
    count. Whether the response was finished does not: a text that breaks off in a sentence fails by itself.

    Raises:
        ValueError: the grammar has no such topic.
    """
    roles = sentence_roles(topic)
    bullets = text.startswith(_BULLET)
    parts = text.removeprefix(_BULLET).split(".\n- ") if bullets else text.split(". ")
    sentences = [part.lower() for part in parts]
    sentences[-1] = sentences[-1].removesuffix(".")
    # Cutting above is lenient; the layout is right if and only if rendering the sentences gives the text.
    if render(sentences, lower=text == text.lower(), bullets=bullets) != text:
        return False
    if len(set(sentences)) < len(sentences) or len(words(text)) > MAX_WORDS:
        return False
    if not _ORDER.fullmatch("".join(roles.get(sentence, "?") for sentence in sentences)):
        return False
    carriers = [sentence for sentence in sentences if roles[sentence] == "k"]
    keywords = {word for sentence in carriers for word in words(sentence) if word in KEYWORDS}
    return len(carriers) <= MAX_KEYWORD_COUNT and len(keywords) <= 1
