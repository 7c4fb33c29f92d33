"""The readable reference of every key of a recipe, made from the schema itself."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Container
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aapa.engine.recipe.schema import Recipe
from aapa.engine.recipe.toml_text import inline, toml_text
from aapa.engine.recipe.validation import table_type

WIDTH = 110
COLUMN = 36


def recipe_reference() -> str:
    """Every key with its default, type, range and one line of documentation."""
    lines = ["[top level]"]
    sections: list[tuple[str, type[BaseModel]]] = []
    for name, field in Recipe.model_fields.items():
        table = table_type(field.annotation)
        if table is None:
            lines += _entry(name, field)
        else:
            sections.append((f"[[{name}]]" if get_origin(field.annotation) is list else f"[{name}]", table))
    for header, table in sections:
        optional = "" if header != "[discriminator]" else " Optional."
        lines += ["", *_paragraph(header, _first_line(table.__doc__) + optional)]
        for name, field in table.model_fields.items():
            inner = table_type(field.annotation)
            lines += _entry(name, field, inner)
    return "\n".join([*lines, *_objectives()]) + "\n"


def _objectives() -> list[str]:
    from aapa.objectives import OBJECTIVES, PRESETS

    lines: list[str] = []
    nested: dict[str, type] = {}
    for kind, cls in OBJECTIVES.items():
        lines += ["", *_paragraph("[stages.objective]", "")]
        lines += _row(f'kind = "{kind}"', _first_line(cls.__doc__))
        parent = next((name for name, other in OBJECTIVES.items() if other in cls.__bases__), None)
        known = {field.name for field in dataclasses.fields(OBJECTIVES[parent])} if parent else set()
        if parent:
            lines += _row("", f"The keys of {parent}, and:")
        lines += _dataclass_rows(cls, nested, known)
    for kind, (cls, values) in PRESETS.items():
        settings = ", ".join(f"{name} = {inline(value)}" for name, value in values.items())
        lines += _row(f'kind = "{kind}"', f"{cls.__name__} with {settings}, unless they are given.")
    done: set[str] = set()
    while todo := [path for path in nested if path not in done]:
        path = todo[0]
        done.add(path)
        lines += ["", *_paragraph(f"[stages.objective.{path}]", _first_line(nested[path].__doc__))]
        inner: dict[str, type] = {}
        lines += _dataclass_rows(nested[path], inner)
        nested.update({f"{path}.{name}": cls for name, cls in inner.items()})
    return lines


def _dataclass_rows(cls: type, nested: dict[str, type], known: Container[str] = ()) -> list[str]:
    """Rows of a dataclass's fields, but for `known` ones; dataclasses are added to `nested` under the field's name."""
    documents = attribute_docs(cls.__doc__ or "")
    hints = get_type_hints(cls)
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        if field.name in known:
            continue
        inner = [
            part for part in _parts(hints[field.name]) if isinstance(part, type) and dataclasses.is_dataclass(part)
        ]
        if inner:
            nested.setdefault(field.name, inner[0])
        default = ... if field.default is dataclasses.MISSING else field.default
        document = _sentence(documents.get(field.name, ""), hints[field.name], default)
        lines += _row(_assignment(field.name, default), document)
    return lines


def attribute_docs(docstring: str) -> dict[str, str]:
    """The texts of a docstring's `Attributes:` section, by attribute; `a, b: text` documents both."""
    documents: dict[str, str] = {}
    names: list[str] = []
    _, _, rest = docstring.partition("Attributes:\n")
    section, _, _ = rest.partition("\n\n")
    for line in textwrap.dedent(section).splitlines():
        start = re.match(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)", line)
        if start:
            names = start[1].split(", ")
            documents.update(dict.fromkeys(names, start[2].strip()))
        else:
            documents.update({name: f"{documents[name]} {line.strip()}" for name in names})
    return documents


def _entry(name: str, field: FieldInfo, inner: type[BaseModel] | None = None) -> list[str]:
    document = field.description or ""
    if inner is not None:
        keys = [_key_of_table(key, item) for key, item in inner.model_fields.items()]
        if get_origin(field.annotation) is list:
            return _row(f"{name} = []", f"{document} An array of tables with the keys {', '.join(keys)}.")
        return _row(f"{name} (optional)", f"{document} A table with the keys {', '.join(keys)}.")
    default = ... if field.is_required() else field.get_default(call_default_factory=True)
    annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return _row(_assignment(name, default), _sentence(document, annotation, default))


def _key_of_table(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return name
    if field.default is None:
        return f"{name} (optional)"
    value = f"{field.default:g}" if isinstance(field.default, float) else inline(field.default)
    return f"{name} (default {value})"


def _assignment(name: str, default: Any) -> str:
    if default is ...:
        return f"{name} (required)"
    if default is None:
        return f"{name} (optional)"
    if isinstance(default, dict):
        return f"{name} = {{}}"
    return toml_text({name: default}).strip()


def _sentence(document: str, annotation: Any, default: Any) -> str:
    """The documentation, and in brackets what it and the default leave open: choices, type, range."""
    choices = [choice for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]
    notes: list[str] = []
    if choices and not all(str(choice) in document for choice in choices):
        notes.append(" | ".join(f'"{choice}"' for choice in choices))
    if default is None or default is ...:
        words = {int: "whole number", float: "number"}
        notes += [words[part] for part in _parts(annotation) if part in words]
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    for mark in _marks(annotation):
        if type(mark) in signs:
            sign, name = signs[type(mark)]
            notes.append(f"{sign} {getattr(mark, name):g}")
    return f"{document} ({', '.join(notes)})" if notes else document


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a union, without their annotations."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) is Literal or not get_args(annotation) or get_origin(annotation) in (list, dict):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts(argument)]


def _marks(annotation: Any) -> list[Any]:
    """The bounds anywhere in an annotation."""
    marks: list[Any] = []
    if get_origin(annotation) is Annotated:
        for mark in get_args(annotation)[1:]:
            marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    if get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            marks += _marks(argument)
    return marks


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def _paragraph(header: str, text: str) -> list[str]:
    return textwrap.wrap(f"{header}  {text}".rstrip(), WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _row(left: str, right: str) -> list[str]:
    wrapped = textwrap.wrap(right, WIDTH - COLUMN, break_on_hyphens=False) or [""]
    first = f"  {left}".ljust(COLUMN - 1)
    # A left part that is too long gets a line of its own.
    lines = [f"{first} {wrapped[0]}"] if len(first) < COLUMN else [first, " " * COLUMN + wrapped[0]]
    return [line.rstrip() for line in [*lines, *(" " * COLUMN + line for line in wrapped[1:])]]
