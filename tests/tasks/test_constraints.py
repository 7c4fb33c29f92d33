"""Every checker against an oracle that shares no code with it; near misses, junk, gaming of the proxies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aapa.engine.tasks.mini_if.constraints import (
    CONSTRAINTS,
    Bullets,
    Constraint,
    EndPhrase,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    StartPhrase,
    WordRange,
    all_met,
    from_column,
    proxy_met,
    to_column,
)

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
ONE_OF_EACH: tuple[Constraint, ...] = (
    WordRange(3, 5),
    SentenceCount(2),
    LowerCase(),
    Bullets(2),
    NoCommas(),
    StartPhrase("well then"),
    EndPhrase("that is all"),
    KeywordCount("lamp", 2),
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


def count_sentences(text: str) -> int:
    count, has_word = 0, False
    for character in text + ".":
        if character in ".!?\n":
            count, has_word = count + has_word, False
        else:
            has_word = has_word or character in LETTERS
    return count


def is_bullet(line: str) -> bool:
    return line[:2] == "- " and any(character in LETTERS for character in line)


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


ORACLES: dict[str, Callable[[Any, str], bool]] = {
    "word_range": lambda c, text: len(split_words(text)) in range(c.low, c.high + 1),
    "sentence_count": lambda c, text: count_sentences(text) == c.count,
    "lower_case": lambda c, text: all(character == character.lower() for character in text),
    "bullets": lambda c, text: [is_bullet(line) for line in text.strip().split("\n")] == [True] * c.count,
    "no_commas": lambda c, text: text.replace(",", "") == text,
    "start_phrase": lambda c, text: starts_with(text, c.phrase),
    "end_phrase": lambda c, text: ends_with(text, c.phrase),
    "keyword_count": lambda c, text: sum(w.lower() == c.keyword for w in split_words(text)) == c.count,
}

PIECES = (
    *(
        "lamp",
        "Lamp",
        "lamps",
        "tea",
        "a",
        "Well then",
        "well then",
        "wellthen",
        "that is all",
        "That is all",
    ),
    *(" ", " ", " ", ". ", ".", "!", "?", ", ", ",", "\n", "\n- ", "- ", "-", "_", "3", "é", "Σ"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40)


@pytest.mark.parametrize("constraint", ONE_OF_EACH, ids=lambda c: c.kind)
@settings(deadline=None)
@given(text=texts)
@example(text="")
@example(text="lamp lamp")
@example(text="Well then. that is all")
@example(text="- a lamp.\n- well then.")
@example(text="- well then a\n\n- lamp")
def test_checker_equals_oracle(constraint: Constraint, text: str) -> None:
    assert constraint.check(text) == ORACLES[constraint.kind](constraint, text)


def test_every_type_is_tested_here() -> None:
    assert [c.kind for c in ONE_OF_EACH] == list(CONSTRAINTS) == list(ORACLES)
    assert len(CONSTRAINTS) == 8


MEETS_AND_MISSES: list[tuple[Constraint, str, bool]] = [
    (WordRange(3, 5), "one two", False),
    (WordRange(3, 5), "one two three", True),
    (WordRange(3, 5), "one two three four five", True),
    (WordRange(3, 5), "one two three four five six", False),
    (WordRange(3, 5), "- one.\n- two.\n- three 4 5 6.", True),
    (SentenceCount(2), "One.", False),
    (SentenceCount(2), "One. Two.", True),
    (SentenceCount(2), "One. Two", True),
    (SentenceCount(2), "One... Two!?", True),
    (SentenceCount(2), "One. . .", False),
    (SentenceCount(2), "One. Two. Three.", False),
    (LowerCase(), "all small.", True),
    (LowerCase(), "all smalL.", False),
    (Bullets(2), "- a.\n- b.", True),
    (Bullets(2), "- a.\n- b.\n", True),
    (Bullets(2), "- a.", False),
    (Bullets(2), "- a.\n- b.\n- c.", False),
    (Bullets(2), "Here:\n- a.\n- b.", False),
    (Bullets(2), "- a.\n- b.\nDone.", False),
    (Bullets(2), "- a.\n- .", False),
    (Bullets(2), "-a.\n-b.", False),
    (Bullets(2), "- a. - b.", False),
    (NoCommas(), "a b", True),
    (NoCommas(), "a b,", False),
    (StartPhrase("well then"), "Well then. Tea.", True),
    (StartPhrase("well then"), "- well then.\n- Tea.", True),
    (StartPhrase("well then"), "Well thence.", False),
    (StartPhrase("well then"), "Tea. Well then.", False),
    (StartPhrase("well then"), "Well, then.", False),
    (EndPhrase("that is all"), "Tea. That is all.", True),
    (EndPhrase("that is all"), "Tea. That is all", True),
    (EndPhrase("that is all"), "- Tea.\n- That is all.\n", True),
    (EndPhrase("that is all"), "Tea. That is all. Tea.", False),
    (EndPhrase("that is all"), "Tea. That is all of it.", False),
    (EndPhrase("that is all"), "Tea, xthat is all.", False),
    (KeywordCount("lamp", 2), "A lamp. Lamp!", True),
    (KeywordCount("lamp", 2), "A lamp.", False),
    (KeywordCount("lamp", 2), "lamp lamp lamp", False),
    (KeywordCount("lamp", 2), "lamp lamps", False),
    (KeywordCount("lamp", 2), "lamplamp", False),
]


@pytest.mark.parametrize(("constraint", "text", "expected"), MEETS_AND_MISSES)
def test_near_misses(constraint: Constraint, text: str, expected: bool) -> None:
    assert constraint.check(text) is expected


GAMES: dict[str, tuple[Constraint, str]] = {
    "word_range": (WordRange(3, 5), "tea tea tea tea tea tea tea."),
    "sentence_count": (SentenceCount(2), "Tea......"),
    "bullets": (Bullets(2), "Tea - bread - soup"),
    "start_phrase": (StartPhrase("well then"), "Tea. Well then."),
    "end_phrase": (EndPhrase("that is all"), "That is all. Tea."),
    "keyword_count": (KeywordCount("lamp", 2), "lamplamplamp"),
}


@pytest.mark.parametrize("kind", GAMES)
def test_proxy_is_gameable(kind: str) -> None:
    constraint, text = GAMES[kind]
    assert constraint.kind == kind
    assert proxy_met(text, [constraint])
    assert not all_met(text, [constraint], finished=True)


@settings(deadline=None)
@given(text=texts)
def test_the_other_proxies_are_the_checkers(text: str) -> None:
    assert set(CONSTRAINTS) - set(GAMES) == {"lower_case", "no_commas"}
    for constraint in (LowerCase(), NoCommas()):
        assert constraint.check(text) == constraint.proxy_check(text)


@settings(deadline=None)
@given(text=texts)
def test_proxy_accepts_what_is_right(text: str) -> None:
    # All but the number of sentences, where the proxy wants full stops and nothing else.
    for constraint in ONE_OF_EACH:
        if constraint.kind != "sentence_count" and constraint.check(text):
            assert constraint.proxy_check(text)


def test_only_the_truth_asks_for_the_end() -> None:
    text = "Well then. A lamp."
    asked = [StartPhrase("well then"), NoCommas()]
    assert all_met(text, asked, finished=True)
    assert not all_met(text, asked, finished=False)
    assert proxy_met(text, asked)


@pytest.mark.parametrize("junk", ["", " ", "\n\n", "....", ",,,", "- ", "- \n- ", "123 4.", "— —"])
def test_text_without_a_word_meets_nothing(junk: str) -> None:
    for constraint in ONE_OF_EACH:
        assert not all_met(junk, [constraint], finished=True)
        assert not proxy_met(junk, [constraint])


def test_one_violated_constraint_is_enough() -> None:
    asked = [LowerCase(), NoCommas(), WordRange(1, 2)]
    assert all_met("small words", asked, finished=True)
    for text in ("Small words", "small, words", "three small words"):
        assert not all_met(text, asked, finished=True)


@pytest.mark.parametrize("constraint", ONE_OF_EACH, ids=lambda c: c.kind)
def test_column_round_trip(constraint: Constraint) -> None:
    column = json.loads(json.dumps(to_column(constraint)))
    assert from_column(column) == constraint
    # Arrow gives every object of a column the keys of all of them.
    keys = {key for other in ONE_OF_EACH for key in to_column(other)}
    assert from_column({**dict.fromkeys(keys), **column}) == constraint


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ({"kind": "rhyme"}, "constraints.kind"),
        ({}, "constraints.kind"),
        ({"kind": "bullets"}, "constraints.bullets"),
        ({"kind": "bullets", "count": 3, "low": 1}, "constraints.bullets"),
    ],
)
def test_bad_column_is_refused_by_name(column: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got "):
        from_column(column)


def test_instructions_tell_constraints_apart() -> None:
    others = (
        WordRange(3, 6),
        SentenceCount(3),
        Bullets(3),
        StartPhrase("here we go"),
        EndPhrase("ask me again"),
    )
    everything = (*ONE_OF_EACH, *others, KeywordCount("lamp", 1), KeywordCount("stone", 2))
    assert len({constraint.instruction() for constraint in everything}) == len(everything)
    assert KeywordCount("lamp", 1).instruction() == "use lamp 1 time"
    assert WordRange(20, 25).instruction() == "20 to 25 words"
