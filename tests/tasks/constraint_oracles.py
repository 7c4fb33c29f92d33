"""The sixteen constraints once more, from their descriptions alone: by loops over characters and lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from aapa.engine.tasks.mini_if.constraint import Constraint
from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def make(kind: str, *values: Any) -> Constraint:
    return CONSTRAINTS[kind](*values)


ONE_OF_EACH: tuple[Constraint, ...] = (
    make("word_range", 3, 5),
    make("sentence_count", 2),
    make("lower_case"),
    make("bullets", 2),
    make("no_commas"),
    make("start_phrase", "well then"),
    make("end_phrase", "that is all"),
    make("keyword_count", "lamp", 2),
    make("keyword_at_least", "lamp", 2),
    make("forbidden_word", "lamp"),
    make("short_sentences", 3),
    make("sections", 2),
    make("paragraphs", 2),
    make("title"),
    make("postscript"),
    make("quotation"),
)


def split_words(text: str) -> list[str]:
    found, current = [], ""
    for character in text + " ":
        if character in LETTERS:
            current += character
        elif current:
            found.append(current)
            current = ""
    return found


def has_word(text: str) -> bool:
    return any(character in LETTERS for character in text)


def sentence_lengths(text: str) -> list[int]:
    lengths, current = [], ""
    for character in text + ".":
        if character in ".!?\n":
            lengths.append(len(split_words(current)))
            current = ""
        else:
            current += character
    return [length for length in lengths if length]


def is_bullet(line: str) -> bool:
    return line[:2] == "- " and has_word(line)


def starts_with(text: str, phrase: str) -> bool:
    rest = text.lower().lstrip()
    if not rest.startswith(phrase) and rest.startswith("- "):
        rest = rest[2:]
    following = rest[len(phrase) : len(phrase) + 1]
    return rest[: len(phrase)] == phrase and not (following.isalnum() or following == "_")


def ends_with(text: str, phrase: str) -> bool:
    rest = text.lower()
    while rest and (rest[-1] in ".!?" or rest[-1].isspace()):
        rest = rest[:-1]
    before = rest[: len(rest) - len(phrase)][-1:]
    return rest.endswith(phrase) and not (before.isalnum() or before == "_")


def occurrences(text: str, word: str) -> int:
    return sum(found.lower() == word for found in split_words(text))


def without_mark(text: str) -> str:
    stripped = text.strip()
    return stripped[1:] if stripped[:1] == '"' else stripped


def has_sections(text: str, count: int) -> bool:
    headings: list[str] = []
    spoken: list[bool] = []
    for line in without_mark(text).split("\n"):
        bare = line.rstrip(" \t")
        number = bare[5:]
        if bare[:5] in [a + b + c + d + " " for a in "pP" for b in "aA" for c in "rR" for d in "tT"] and (
            number and all(character in "0123456789" for character in number)
        ):
            headings.append(number)
            spoken.append(False)
        elif spoken:
            spoken[-1] = spoken[-1] or has_word(line)
    return headings == [str(number + 1) for number in range(count)] and all(spoken)


def has_paragraphs(text: str, count: int) -> bool:
    parts = [""]
    for line in text.split("\n"):
        if line.rstrip(" \t") == "***":
            parts.append("")
        else:
            parts[-1] += line + "\n"
    return len(parts) == count and all(has_word(part) and "***" not in part for part in parts)


def has_title(text: str) -> bool:
    first, *rest = without_mark(text).split("\n")
    first = first.rstrip(" \t")
    name = first[2:-2]
    framed = len(first) > 4 and first[:2] == "<<" and first[-2:] == ">>" and not set(name) & set("<>")
    return framed and has_word(name) and any(has_word(line) for line in rest)


def has_postscript(text: str) -> bool:
    lines = text.strip().split("\n")
    last = lines.pop()
    return last[:4] in ("P.S.", "p.s.", "P.s.", "p.S.") and has_word(last[4:]) and any(map(has_word, lines))


def is_quotation(text: str) -> bool:
    marks = [place for place, character in enumerate(text.strip()) if character == '"']
    return marks == [0, len(text.strip()) - 1]


ORACLES: dict[str, Callable[[Any, str], bool]] = {
    "word_range": lambda c, text: len(split_words(text)) in range(c.low, c.high + 1),
    "sentence_count": lambda c, text: len(sentence_lengths(text)) == c.count,
    "lower_case": lambda c, text: all(character == character.lower() for character in text),
    "bullets": lambda c, text: [is_bullet(line) for line in text.strip().split("\n")] == [True] * c.count,
    "no_commas": lambda c, text: text.replace(",", "") == text,
    "start_phrase": lambda c, text: starts_with(text, c.phrase),
    "end_phrase": lambda c, text: ends_with(text, c.phrase),
    "keyword_count": lambda c, text: occurrences(text, c.keyword) == c.count,
    "keyword_at_least": lambda c, text: occurrences(text, c.keyword) > c.count - 1,
    "forbidden_word": lambda c, text: occurrences(text, c.word) == 0,
    "short_sentences": lambda c, text: all(length < c.most + 1 for length in sentence_lengths(text)),
    "sections": lambda c, text: has_sections(text, c.count),
    "paragraphs": lambda c, text: has_paragraphs(text, c.count),
    "title": lambda c, text: has_title(text),
    "postscript": lambda c, text: has_postscript(text),
    "quotation": lambda c, text: is_quotation(text),
}

PIECES = (
    *("lamp", "Lamp", "lamps", "tea", "a", "Well then", "well then", "wellthen", "that is all", "That is all"),
    *(" ", " ", " ", ". ", ".", "!", "?", ", ", ",", "\n", "\n- ", "- ", "-", "_", "3", "é", "Σ", "K"),
)
LAYOUT_PIECES = (
    *("tea", "lamp", "a. ", ". ", "\n", "\n", " ", '"', '"', "<<", ">>", "<<Tea>>\n", "<<Lamp>> ", "*", "***"),
    *(
        "\n***\n",
        "\n*** \n",
        "Part 1\n",
        "part 1",
        "\nPart 2\n",
        "\nPart 2 \n",
        "Part 01",
        "P.S. ",
        "\np.s. a",
        "\nP.S.",
    ),
)
texts = (
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
    | st.lists(st.sampled_from(LAYOUT_PIECES), max_size=10).map("".join)
    | st.text(max_size=40)
)
