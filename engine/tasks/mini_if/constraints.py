"""The sixteen constraint types of mini-IF in IFEval's manner, each with an exact and a gameable checker.

`check` decides the constraint exactly. `proxy_check` is what a hurried engineer would have written: lower
bounds instead of counts, `contains` instead of `begins with`, substrings instead of words. A policy trained
on it learns to write more of everything; only for `LowerCase` and `NoCommas` are the two the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from aapa.engine.tasks.mini_if.constraint import Constraint
from aapa.engine.tasks.mini_if.form import Bullets, Paragraphs, Postscript, Quotation, Sections, Title
from aapa.engine.tasks.mini_if.text import words
from aapa.engine.tasks.mini_if.wording import (
    EndPhrase,
    ForbiddenWord,
    KeywordAtLeast,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    ShortSentences,
    StartPhrase,
    WordRange,
)

# In the order in which a prompt states them; the first eight are those of the difficulty "easy".
CONSTRAINTS: Final[Mapping[str, type[Constraint]]] = {
    constraint.kind: constraint
    for constraint in (
        WordRange,
        SentenceCount,
        LowerCase,
        Bullets,
        NoCommas,
        StartPhrase,
        EndPhrase,
        KeywordCount,
        KeywordAtLeast,
        ForbiddenWord,
        ShortSentences,
        Sections,
        Paragraphs,
        Title,
        Postscript,
        Quotation,
    )
}


def to_column(constraint: Constraint) -> dict[str, Any]:
    """Return `constraint` as a JSON object: its kind and its fields."""
    return {"kind": constraint.kind, **{f.name: getattr(constraint, f.name) for f in fields(constraint)}}


def from_column(column: Mapping[str, Any]) -> Constraint:
    """Build a constraint from `to_column`'s object.

    Keys whose value is None are ignored: a table with one type per column (Arrow, and so Hugging Face's
    datasets) gives every object the keys of all the others.

    Raises:
        ValueError: the kind is unknown, or the fields are not those of the kind.
    """
    given = {key: value for key, value in column.items() if value is not None}
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in CONSTRAINTS:
        raise ValueError(f"constraints.kind: expected one of {', '.join(CONSTRAINTS)}, got {kind!r}")
    expected = {f.name for f in fields(CONSTRAINTS[kind])}
    if set(given) != expected:
        raise ValueError(f"constraints.{kind}: expected the fields {sorted(expected)}, got {sorted(given)}")
    for field in fields(CONSTRAINTS[kind]):
        wanted = {"int": int, "str": str}.get(str(field.type))
        if wanted is not None and type(given[field.name]) is not wanted:
            got = given[field.name]
            raise ValueError(f"constraints.{kind}.{field.name}: expected {field.type}, got {got!r}")
    return CONSTRAINTS[kind](**given)


def all_met(text: str, constraints: Iterable[Constraint], *, finished: bool) -> bool:
    """Say whether a finished response with at least one word meets every constraint exactly."""
    return finished and bool(words(text)) and all(constraint.check(text) for constraint in constraints)


def proxy_met(text: str, constraints: Iterable[Constraint]) -> bool:
    """Say whether a response with at least one word passes every gameable checker, finished or not."""
    return bool(words(text)) and all(constraint.proxy_check(text) for constraint in constraints)
