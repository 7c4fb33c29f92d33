"""Arithmetic expressions as trees that are worked out one operation at a time."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from typing import Final

_SYMBOLS: Final[dict[type[ast.operator], str]] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_BINDING: Final = {"+": 1, "-": 1, "*": 2}


@dataclass(frozen=True)
class Number:
    """An integer, which may be negative."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Negation:
    """Minus a parenthesis."""

    inner: Expression

    def __str__(self) -> str:
        return f"-({self.inner})"


@dataclass(frozen=True)
class Operation:
    """Two operands and `+`, `-` or `*`; written with the parentheses that the usual precedence needs."""

    left: Expression
    symbol: str
    right: Expression

    def __str__(self) -> str:
        left, right, binding = str(self.left), str(self.right), _BINDING[self.symbol]
        if isinstance(self.left, Operation) and _BINDING[self.left.symbol] < binding:
            left = f"({left})"
        if isinstance(self.right, Operation) and _BINDING[self.right.symbol] <= binding:
            right = f"({right})"
        return f"{left} {self.symbol} {right}"


Expression = Number | Negation | Operation


def parse(text: str) -> Expression:
    """Read an expression of integers, `+`, `-`, `*` and parentheses.

    Raises:
        ValueError: it holds anything else.
    """
    return _from_ast(ast.parse(text, mode="eval").body, text)


def _from_ast(node: ast.expr, text: str) -> Expression:
    match node:
        case ast.Constant(value=int(value)):
            return Number(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _from_ast(operand, text)
            return (
                Number(-inner.value)
                if isinstance(operand, ast.Constant) and isinstance(inner, Number)
                else Negation(inner)
            )
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SYMBOLS:
            return Operation(_from_ast(left, text), _SYMBOLS[type(op)], _from_ast(right, text))
    raise ValueError(f"expression: expected integers, + - * and parentheses, got {text!r}")


def compute(left: int, symbol: str, right: int) -> int:
    """Work out one operation."""
    if symbol == "+":
        return left + right
    return left - right if symbol == "-" else left * right


def reduce_once(expression: Expression, *, from_right: bool) -> tuple[Expression, Expression, int]:
    """Work out one operation whose operands are numbers.

    Args:
        expression: not a number.
        from_right: whether the rightmost such operation is taken, instead of the leftmost.

    Returns:
        What is left of the expression, the operation, and its value.
    """
    assert not isinstance(expression, Number)
    if isinstance(expression, Negation):
        if isinstance(expression.inner, Number):
            return Number(-expression.inner.value), expression, -expression.inner.value
        rest, done, value = reduce_once(expression.inner, from_right=from_right)
        return Negation(rest), done, value
    left, right = expression.left, expression.right
    if isinstance(left, Number) and isinstance(right, Number):
        value = compute(left.value, expression.symbol, right.value)
        return Number(value), expression, value
    if isinstance(left, Number) or (from_right and not isinstance(right, Number)):
        rest, done, value = reduce_once(right, from_right=from_right)
        return replace(expression, right=rest), done, value
    rest, done, value = reduce_once(left, from_right=from_right)
    return replace(expression, left=rest), done, value
