"""What mini-IF calls a word and a sentence; the grammar and every checker share these definitions."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-z]+")
_SENTENCE_END = re.compile(r"[.!?\n]+")


def words(text: str) -> list[str]:
    """Return the maximal runs of unaccented letters in `text`, in order, case kept."""
    return _WORD.findall(text)


def sentence_count(text: str) -> int:
    """Count the stretches between `.`, `!`, `?` and line breaks that hold at least one word."""
    return sum(_WORD.search(part) is not None for part in _SENTENCE_END.split(text))


def longest_sentence(text: str) -> int:
    """Count the words of the longest stretch between `.`, `!`, `?` and line breaks."""
    return max(len(words(part)) for part in _SENTENCE_END.split(text))
