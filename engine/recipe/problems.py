"""What is wrong with a recipe, told in one line per problem: `<file>: <field>: expected …, got …`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from aapa.engine.errors import UserError

Path = tuple[str | int, ...]
# A problem is the field's path, and the sentence after the colon.
Problem = tuple[Path, str]


class RecipeError(UserError):
    """A recipe that cannot be run; the text has one line per problem."""


def dotted(path: Path) -> str:
    """The path as it is written on the command line."""
    return ".".join(str(part) if re.fullmatch(r"[\w-]+", str(part)) else repr(part) for part in path)


def at(field: str, text: str) -> Problem:
    """A problem of the field with this dotted name."""
    return tuple(int(part) if part.isdecimal() else part for part in field.split(".")), text


def raise_problems(problems: Sequence[Problem], label: str, overridden: Iterable[Path] = ()) -> None:
    """Raises one `RecipeError` for all problems, each line starting with where the value came from.

    Args:
        problems: nothing is raised when there are none.
        label: the file's name.
        overridden: paths given on the command line; problems there are not blamed on the file.
    """
    if not problems:
        return
    starts = [tuple(map(str, path)) for path in overridden]
    lines = []
    for path, text in problems:
        parts = tuple(map(str, path))
        # Above or below what was set: `--discriminatr.rank 8` makes the unknown table, too.
        given = parts and any(parts[: len(start)] == start[: len(parts)] for start in starts)
        source = "command line" if given else label
        field = f"{dotted(path)}: " if path else ""
        lines.append(f"{source}: {field}{text}")
    raise RecipeError("\n".join(dict.fromkeys(lines)))


def short(value: Any) -> str:
    """The value as the user would write it, cut to a readable length."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Names the one that was probably meant, or lists all; reads on from "expected "."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"a known name, perhaps {close[0]!r}" if close else "one of " + ", ".join(names)
