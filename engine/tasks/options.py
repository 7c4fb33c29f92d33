"""Checks of a task's options, which come from a recipe's `data.options`."""

from __future__ import annotations

from collections.abc import Iterable

from aapa.engine.errors import UserError


def integer(field: str, value: object, *, minimum: int) -> int:
    """Return `value` if it is an integer of at least `minimum`.

    Raises:
        UserError: it is not.
    """
    # bool is an int to Python, but `train_size = true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{field}: expected an integer of at least {minimum}, got {value!r}")
    return value


def share(field: str, value: object) -> float:
    """Return `value` if it is a number in [0, 1).

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{field}: expected a number in [0, 1), got {value!r}")
    return float(value)


def choice(field: str, value: object, among: Iterable[str]) -> str:
    """Return `value` if it is one of `among`.

    Raises:
        UserError: it is not.
    """
    names = list(among)
    if not isinstance(value, str) or value not in names:
        raise UserError(f"{field}: expected one of {', '.join(names)}, got {value!r}")
    return value
