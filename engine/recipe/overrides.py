"""Overrides on the command line: `--stages.0.steps 20`, `--stages.sft.steps 20`, `--model.source=DIR`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from aapa.engine.recipe.problems import Path, Problem, short, suggestion


def parse_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, Any]], list[Problem]]:
    """Dotted names with their values, in order; a value that is not TOML is a plain string."""
    pairs: list[tuple[str, Any]] = []
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            problems.append(((), f"expected an override like --section.key VALUE, got {short(argument)}"))
        elif equals or rest:
            pairs.append((name, _value(text if equals else rest.pop(0))))
        else:
            problems.append(((name,), "expected a value, got nothing"))
    return pairs, problems


def apply_overrides(table: dict[str, Any], pairs: Sequence[tuple[str, Any]]) -> tuple[list[Path], list[Problem]]:
    """Sets the values in the table, in place.

    Returns:
        The paths that were set, with stage names resolved to numbers, and what could not be set.
    """
    paths: list[Path] = []
    problems: list[Problem] = []
    for name, value in pairs:
        path: list[str | int] = []
        target: Any = table
        try:
            parts = name.split(".")
            for position, part in enumerate(parts):
                key = _key(target, part)
                path.append(key)
                if position == len(parts) - 1:
                    target[key] = value
                elif isinstance(target, dict):
                    target = target.setdefault(key, {})
                else:
                    target = target[key]
        except ValueError as error:
            problems.append(((*path, part), str(error)))
        else:
            paths.append(tuple(path))
    return paths, problems


def _key(target: Any, part: str) -> str | int:
    """A table's key, or an array's number given by number or by the `name` of the element."""
    if not part:
        raise ValueError("expected a key, got nothing")
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise ValueError(f"expected a table or an array to look this up in, got {short(target)}")
    names = [str(row["name"]) for row in target if isinstance(row, dict) and "name" in row]
    if part in names:
        return next(i for i, row in enumerate(target) if isinstance(row, dict) and str(row.get("name")) == part)
    if part.isdecimal() and int(part) < len(target):
        return int(part)
    if names:
        raise ValueError(f"expected {suggestion(part, names)}, or a number below {len(target)}, got {short(part)}")
    raise ValueError(f"expected a number below {len(target)}, got {short(part)}")


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A text with line breaks could hold more than a value.
    return parsed["value"] if list(parsed) == ["value"] else text
