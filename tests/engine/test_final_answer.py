"""The reward that compares final answers: what counts as one, and what counts as the same."""

from __future__ import annotations

import pytest

from aapa.engine.final_answer import extract, final_answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{1", None),
        ("48 + 8 = 56\n#### 56", "56"),
        ("Answer: 3\nno, wait.\n**Answer:** 4\nDone.", "** 4"),
        ("the answer : red", "red"),
        ("#### 5\n" + r"\boxed{6}", "6"),
        ("Answer:", None),
        ("nothing said", None),
    ],
)
def test_the_last_mark_counts(text: str, found: str | None) -> None:
    assert extract(text) == found


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("Answer: 1,250.0", 1250, 1.0),
        ("Answer: 12,50", 1250, 0.0),
        ("Answer: $4.50.", "4.5", 1.0),
        ("Answer: -3", 3, 0.0),
        ("Answer: 0.1", 0.1, 1.0),
        ("Answer: Paris.", "paris", 1.0),
        ("Answer: Paris, France", "Paris", 0.0),
        ("**Answer:** 72", "48/2 = 24\n#### 72", 1.0),
        ("72", 72, 0.0),
        ("Answer: $$", "", 0.0),
    ],
)
def test_answers_are_compared_by_value(said: str, right: object, value: float) -> None:
    assert final_answer(["x"], [said], answer=[right]) == [value]
    assert final_answer([[]], [[{"role": "assistant", "content": said}]], answer=[right]) == [value]


def test_a_row_without_an_answer_is_judged_by_its_first_expert() -> None:
    experts = [["6 * 7\n#### 42", "#### 41"], "Answer: 7", "no mark"]
    assert final_answer(
        ["x"] * 3, ["Answer: 42", "Answer: 8", "Answer: 9"], answer=[None, None, 9], expert=experts
    ) == [
        1.0,
        0.0,
        1.0,
    ]


@pytest.mark.parametrize("columns", [{}, {"answer": [None]}, {"expert": ["no mark"]}, {"expert": [[]]}])
def test_a_row_that_has_no_answer_is_refused(columns: dict) -> None:
    with pytest.raises(ValueError, match=r"answer: expected a column with the right answer, or .*, got "):
        final_answer(["x"], ["Answer: 1"], **columns)
