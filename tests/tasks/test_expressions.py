"""Expressions: read, written with the parentheses they need, and worked out one operation at a time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.engine.tasks.reasoning.expressions import Expression, Negation, Number, Operation, parse, reduce_once

numbers = st.integers(-99, 99).map(Number)
expressions = st.recursive(
    numbers,
    lambda inner: st.builds(Negation, inner) | st.builds(Operation, inner, st.sampled_from("+-*"), inner),
    max_leaves=6,
)


def value(text: str) -> int:
    """Python's own arithmetic, which shares no code with the trees."""
    return int(eval(text, {"__builtins__": {}}))


def tree_value(expression: Expression) -> int:
    match expression:
        case Number(number):
            return number
        case Negation(inner):
            return -tree_value(inner)
        case Operation(left, symbol, right):
            a, b = tree_value(left), tree_value(right)
            return {"+": a + b, "-": a - b, "*": a * b}[symbol]


@settings(deadline=None)
@given(expression=expressions)
def test_writing_keeps_the_value(expression: Expression) -> None:
    assert value(str(expression)) == tree_value(expression)
    assert value(str(parse(str(expression)))) == tree_value(expression)


@settings(deadline=None)
@given(expression=expressions, from_right=st.booleans())
def test_every_operation_worked_out_is_right(expression: Expression, from_right: bool) -> None:
    wanted = tree_value(expression)
    while not isinstance(expression, Number):
        expression, done, found = reduce_once(expression, from_right=from_right)
        assert value(str(done)) == found
        assert not isinstance(done, Number)
        assert value(str(expression)) == wanted
    assert expression == Number(wanted)


def test_the_order_is_as_asked() -> None:
    expression = parse("( 1 - 2 ) * ( 3 + 4 )")
    assert str(expression) == "(1 - 2) * (3 + 4)"
    assert [str(part) for part in reduce_once(expression, from_right=False)] == ["-1 * (3 + 4)", "1 - 2", "-1"]
    assert [str(part) for part in reduce_once(expression, from_right=True)] == ["(1 - 2) * 7", "3 + 4", "7"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("( -9 - 8 )", "-9 - 8"),
        ("-( 5 + -8 )", "-(5 + -8)"),
        ("1 - ( 2 - 3 )", "1 - (2 - 3)"),
        ("( 1 - 2 ) - 3", "1 - 2 - 3"),
        ("2 * ( 3 + 4 )", "2 * (3 + 4)"),
        ("2 + 3 * 4", "2 + 3 * 4"),
        ("3 - -7", "3 - -7"),
    ],
)
def test_parentheses(text: str, written: str) -> None:
    assert str(parse(text)) == written


@pytest.mark.parametrize("text", ["2 / 3", "2 ** 3", "a + 1", "+3", "1.5 + 2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^expression: expected integers"):
        parse(text)
