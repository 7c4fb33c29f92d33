"""Texts that meet a constraint, texts that just miss it, and texts that only fool the proxy."""

from __future__ import annotations

from typing import Any

import pytest
from constraint_oracles import make

from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS, all_met, proxy_met

# Kind, the constraint's values, texts that meet it, texts that do not.
CASES: list[tuple[str, tuple[Any, ...], list[str], list[str]]] = [
    (
        "word_range",
        (3, 5),
        ["one two three", "one two three four five"],
        ["one two", "one two three four five six", "- one.\n- two."],
    ),
    ("word_range", (3, 5), ["- one.\n- two.\n- three 4 5 6."], ["4 5 6"]),
    ("sentence_count", (2,), ["One. Two.", "One. Two", "One... Two!?"], ["One.", "One. . .", "One. Two. Three."]),
    ("lower_case", (), ["all small."], ["all smalL."]),
    ("bullets", (2,), ["- a.\n- b.", "- a.\n- b.\n"], ["- a.", "- a.\n- b.\n- c.", "- a.\n- .", "- a. - b."]),
    ("bullets", (2,), [], ["Here:\n- a.\n- b.", "- a.\n- b.\nDone.", "-a.\n-b."]),
    ("no_commas", (), ["a b"], ["a b,"]),
    ("start_phrase", ("well then",), ["Well then. Tea.", "- well then.\n- Tea."], ["Well thence.", "Well, then."]),
    ("start_phrase", ("well then",), [], ["Tea. Well then.", '"Well then. Tea."', "Part 1\nWell then."]),
    (
        "end_phrase",
        ("that is all",),
        ["Tea. That is all.", "Tea. That is all", "- Tea.\n- That is all.\n"],
        ["Tea. That is all. Tea.", "Tea. That is all of it.", "Tea, xthat is all.", '"Tea. That is all."'],
    ),
    ("keyword_count", ("lamp", 2), ["A lamp. Lamp!"], ["A lamp.", "lamp lamp lamp", "lamp lamps", "lamplamp"]),
    ("keyword_at_least", ("lamp", 2), ["A lamp. Lamp!", "lamp lamp lamp"], ["A lamp.", "lamp lamps", "lamplamp"]),
    ("forbidden_word", ("lamp",), ["tea", "lamps", "clamp"], ["Lamp", "a lamp.", "LAMP", "a lamp b", '"lamp"']),
    (
        "short_sentences",
        (3,),
        ["One two three. Four.", "a b c\nd e f", "a b c 4 5"],
        ["One two three four.", "a b, c d."],
    ),
    ("short_sentences", (3,), ["P.S. One two three."], ["One. Two. Three four five six. Seven.", "- a b\n- c d e f"]),
    (
        "sections",
        (2,),
        [
            "Part 1\na.\nPart 2\nb.",
            "part 1\na.\npart 2\nb.",
            "<<T>>\nPart 1\na.\nPart 2 \nb.",
            '"Part 1\na\nPart 2\nb"',
        ],
        ["Part 1\na.", "Part 1\na.\nPart 2\n", "Part 1\na.\nPart 2\nb.\nPart 3\nc.", "Part 1 a.\nPart 2 b."],
    ),
    (
        "sections",
        (2,),
        ["Part 1\n\na.\n\nPart 2\n\nb."],
        ["Part 2\na.\nPart 1\nb.", "Part 1\na.\nPart 1\nb.", "Part 01\na.\nPart 02\nb.", "Part 1\nPart 2\nb."],
    ),
    (
        "paragraphs",
        (2,),
        ["a.\n***\nb.", "a.\n\n***\n\nb.", '"a.\n***\nb."'],
        ["a.", "a.\n***\n", "***\na.\n***\nb.", "a.\n***\nb.\n***\nc.", "a. *** b.", "a.\n****\nb."],
    ),
    ("paragraphs", (2,), [], ["a ***.\n***\nb.", "a.\n\nb."]),
    (
        "title",
        (),
        ["<<Tea>>\nb.", '"<<Tea>>\nb."', "<<tea and salt>> \nPart 1\nb."],
        [
            "<<Tea>>",
            "<<Tea>> b.",
            "b.\n<<Tea>>\nb.",
            "<Tea>\nb.",
            "<<>>\nb.",
            "<<Tea\n>>b.",
            "<<Tea>>\n.",
            "<<<T>>>\nb.",
        ],
    ),
    (
        "postscript",
        (),
        ["a.\nP.S. b.", "a.\np.s. b.", '"a.\nP.S. b."', "a.\nP.S. b.\n"],
        ["P.S. b.", "a. P.S. b.", "a.\nP.S.", "P.S. b.\na.", "a.\nPS b.", ".\nP.S. b.", "a.\nP.P.S. b."],
    ),
    ("quotation", (), ['"a."', ' "a b"\n', '"a\nb"'], ['"', '"a', 'a"', '"a" b', '"a" "b"', "'a'", 'x"a"']),
]


@pytest.mark.parametrize(("kind", "values", "met", "missed"), CASES)
def test_near_misses(kind: str, values: tuple[Any, ...], met: list[str], missed: list[str]) -> None:
    constraint = make(kind, *values)
    assert [text for text in met if not constraint.check(text)] == []
    assert [text for text in missed if constraint.check(text)] == []


def test_every_type_has_near_misses() -> None:
    assert {case[0] for case in CASES} == set(CONSTRAINTS)


GAMES: dict[str, tuple[tuple[Any, ...], str]] = {
    "word_range": ((3, 5), "tea tea tea tea tea tea tea."),
    "sentence_count": ((2,), "Tea......"),
    "bullets": ((2,), "Tea - bread - soup"),
    "start_phrase": (("well then",), "Tea. Well then."),
    "end_phrase": (("that is all",), "That is all. Tea."),
    "keyword_count": (("lamp", 2), "lamplamplamp"),
    "keyword_at_least": (("lamp", 2), "lamplamplamp"),
    "forbidden_word": (("lamp",), "Lamp. A lamp, lamp."),
    "short_sentences": ((3,), "Tea and salt and bread and honey......"),
    "sections": ((2,), "Partpart tea."),
    "paragraphs": ((3,), "Tea ******"),
    "title": ((), "Tea >><<"),
    "postscript": ((), "P.S. Tea."),
    "quotation": ((), 'Tea ""'),
}


@pytest.mark.parametrize("kind", GAMES)
def test_proxy_is_gameable(kind: str) -> None:
    values, text = GAMES[kind]
    constraint = make(kind, *values)
    assert proxy_met(text, [constraint])
    assert not all_met(text, [constraint], finished=True)


def test_only_two_proxies_are_exact() -> None:
    assert set(CONSTRAINTS) - set(GAMES) == {"lower_case", "no_commas"}
