"""Rewords what pydantic finds wrong with a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from aapa.engine.recipe.objective import objective_class, table_model
from aapa.engine.recipe.problems import Path, Problem, at, short, suggestion


def validation_problems(error: ValidationError, table: Any, root: type[BaseModel]) -> list[Problem]:
    """The problems pydantic found, with paths as the user wrote them and the house's wording.

    Args:
        error: what validation raised.
        table: the input, used to tell the user's keys from the tags pydantic adds for unions.
        root: the model, used to suggest the key that may have been meant.
    """
    found: dict[Path, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_real_path(detail["loc"], table, detail["type"]), []).append(dict(detail))
    problems: list[Problem] = []
    for path, details in found.items():
        # A table where a number or a table is allowed: only what is wrong inside the table is of use.
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in found)
        if deeper and all(detail["type"].endswith("_type") or _other_choice(detail) for detail in details):
            continue
        if details[0]["type"] == "value_error":
            problems += _own_messages(path, str(details[0]["ctx"]["error"]))
        elif details[0]["type"] == "extra_forbidden":
            problems.append((path, _unknown_key(path, table, root)))
        else:
            wanted = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
            got = "nothing" if details[0]["type"] == "missing" else short(details[0]["input"])
            problems.append((path, f"expected {wanted}, got {got}"))
    return problems


def _other_choice(detail: dict[str, Any]) -> bool:
    """Whether a table or an array was compared with words that are allowed in its place."""
    return detail["type"] == "literal_error" and isinstance(detail["input"], dict | list | tuple)


def _real_path(location: tuple[str | int, ...], table: Any, kind: str) -> Path:
    path: list[str | int] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(table, dict) and (part in table or (last and kind == "missing")):
            path.append(part)
            table = table.get(part)
        elif isinstance(table, list | tuple) and isinstance(part, int) and part < len(table):
            path.append(part)
            table = table[part]
    return tuple(path)


def _own_messages(path: Path, text: str) -> list[Problem]:
    """Messages of our validators, `<field>: expected …`, the field relative to where the validator sits."""
    problems: list[Problem] = []
    for line in text.splitlines():
        field = re.match(r"([A-Za-z_][\w.]*): (?=expected )", line)
        if field is None:
            problems.append((path, line))
            continue
        inner, rest = at(field[1], line[field.end() :])
        problems.append(((*path, *inner), rest))
    return problems


def _unknown_key(path: Path, table: Any, root: type[BaseModel]) -> str:
    known = _keys_at(root, path[:-1], table)
    return f"expected {suggestion(str(path[-1]), known)}, got {str(path[-1])!r}"


def _keys_at(model: type[BaseModel], path: Path, table: Any) -> list[str]:
    """Keys of the table at `path`; an objective's depend on its kind."""
    keys = list(model.model_fields)
    for part in path:
        table = table[part]
        if isinstance(part, int):
            continue
        inner = table_type(model.model_fields[part].annotation)
        model = inner or table_model(objective_class(table["kind"]))
        keys = list(model.model_fields) if inner else ["kind", *model.model_fields]
    return keys


def table_type(annotation: Any) -> type[BaseModel] | None:
    """The model somewhere inside an annotation such as `list[Model]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (table_type(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


_EXPECTED: dict[str, str | Callable[[dict[str, Any]], str]] = {
    "missing": "a value",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "none_required": "nothing",
    "string_too_short": "a string that is not empty",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', a letter or digit first",
    "too_short": lambda context: f"at least {context['min_length']} of them",
    "too_long": lambda context: f"an array of at most {context['max_length']}",
    "literal_error": lambda context: str(context["expected"]),
    "greater_than": lambda context: f"a number above {context['gt']:g}",
    "greater_than_equal": lambda context: f"a number of at least {context['ge']:g}",
    "less_than": lambda context: f"a number below {context['lt']:g}",
    "less_than_equal": lambda context: f"a number of at most {context['le']:g}",
}


def _expected(detail: dict[str, Any]) -> str:
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        return f"an array of at least {detail['loc'][-1] + 1}"
    wording = _EXPECTED.get(detail["type"])
    if wording is None:
        return str(detail["msg"]).removeprefix("Input should be ")
    return wording if isinstance(wording, str) else wording(detail.get("ctx", {}))
