"""Every checker against an oracle that shares no code with it; junk, columns, instructions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from constraint_oracles import ONE_OF_EACH, ORACLES, make, texts
from hypothesis import example, given, settings

from aapa.engine.tasks.mini_if.constraint import Constraint
from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS, all_met, from_column, proxy_met, to_column


@pytest.mark.parametrize("constraint", ONE_OF_EACH, ids=lambda c: c.kind)
@settings(deadline=None)
@given(text=texts)
@example(text="")
@example(text="lamp lamp")
@example(text="Well then. that is all")
@example(text="- a lamp.\n- well then.")
@example(text="- well then a\n\n- lamp")
@example(text='"Part 1\na.\nPart 2 \na."')
@example(text='"<<a>>\na\n***\na\np.s. a"')
def test_checker_equals_oracle(constraint: Constraint, text: str) -> None:
    assert constraint.check(text) == ORACLES[constraint.kind](constraint, text)


def test_every_type_is_tested_here() -> None:
    assert [c.kind for c in ONE_OF_EACH] == list(CONSTRAINTS) == list(ORACLES)
    assert len(CONSTRAINTS) == 16


@settings(deadline=None)
@given(text=texts)
def test_two_proxies_are_the_checkers(text: str) -> None:
    for kind in ("lower_case", "no_commas"):
        assert make(kind).check(text) == make(kind).proxy_check(text)


@settings(deadline=None)
@given(text=texts)
def test_proxy_accepts_what_is_right(text: str) -> None:
    # All but the number of sentences, where the proxy wants full stops and nothing else.
    for constraint in ONE_OF_EACH:
        if constraint.kind != "sentence_count" and constraint.check(text):
            assert constraint.proxy_check(text), constraint


def test_only_the_truth_asks_for_the_end() -> None:
    text = "Well then. A lamp."
    asked = [make("start_phrase", "well then"), make("no_commas")]
    assert all_met(text, asked, finished=True)
    assert not all_met(text, asked, finished=False)
    assert proxy_met(text, asked)


@pytest.mark.parametrize(
    "junk", ["", " ", "\n\n", "....", ",,,", "- ", "- \n- ", "123 4.", "— —", '""', "<<>>\n", "***"]
)
def test_text_without_a_word_meets_nothing(junk: str) -> None:
    for constraint in ONE_OF_EACH:
        assert not all_met(junk, [constraint], finished=True)
        assert not proxy_met(junk, [constraint])


ASKS_FOR_A_FORM = ("bullets", "sections", "paragraphs", "title", "postscript", "quotation")


@pytest.mark.parametrize("junk", ["lamp " * 60, "Lamp\n" * 60, "xq lkj, wv pzt " * 9, "well then that is all " * 9])
def test_repetition_and_noise_have_no_form(junk: str) -> None:
    for constraint in ONE_OF_EACH:
        if constraint.kind in ASKS_FOR_A_FORM:
            assert not constraint.check(junk)
            assert not constraint.proxy_check(junk)


@pytest.mark.parametrize("kind", ASKS_FOR_A_FORM)
def test_an_echo_of_the_instruction_has_no_form(kind: str) -> None:
    constraint = next(c for c in ONE_OF_EACH if c.kind == kind)
    assert not constraint.check(f"About tea: {constraint.instruction()}.\n\n")


def test_one_violated_constraint_is_enough() -> None:
    asked = [make("lower_case"), make("no_commas"), make("word_range", 1, 2)]
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
        ({"kind": "forbidden_word", "keyword": "lamp"}, "constraints.forbidden_word"),
        ({"kind": "title", "count": 1}, "constraints.title"),
        ({"kind": ["bullets"]}, "constraints.kind"),
        ({"kind": "bullets", "count": "3"}, "constraints.bullets.count"),
    ],
)
def test_bad_column_is_refused_by_name(column: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got "):
        from_column(column)


def test_instructions_tell_constraints_apart() -> None:
    others = (
        make("word_range", 3, 6),
        make("sentence_count", 3),
        make("bullets", 3),
        make("start_phrase", "here we go"),
        make("end_phrase", "ask me again"),
        make("keyword_count", "lamp", 1),
        make("keyword_count", "stone", 2),
        make("keyword_at_least", "lamp", 1),
        make("forbidden_word", "salt"),
        make("short_sentences", 2),
        make("sections", 3),
        make("paragraphs", 3),
    )
    everything = (*ONE_OF_EACH, *others)
    assert len({constraint.instruction() for constraint in everything}) == len(everything)
    assert make("keyword_count", "lamp", 1).instruction() == "use lamp 1 time"
    assert make("word_range", 20, 25).instruction() == "20 to 25 words"
    # Clauses are joined by "; " and the last one ends with a full stop.
    assert not any(set(constraint.instruction()) & set(";.\n") for constraint in everything)
