"""An objective's table in a recipe, to and from the frozen dataclass whose fields are its hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import operator
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, TypeAdapter, create_model

from aapa.engine.recipe.problems import short, suggestion

TABLE = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def load_dotted(path: str) -> Any:
    """The object named by `package.module:name`.

    Raises:
        ValueError: it has another form, or cannot be imported.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"expected 'package.module:name', got {short(path)}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected something importable, got {short(path)} ({error})") from error


def objective_class(kind: Any) -> type:
    """The dataclass of an objective's kind: a name in `aapa.objectives.OBJECTIVES` or `PRESETS`, or a dotted path.

    Raises:
        ValueError: no such objective.
    """
    from aapa.objectives import OBJECTIVES, PRESETS, Objective

    kinds = [*OBJECTIVES, *PRESETS]
    if not isinstance(kind, str):
        got = "nothing" if kind is None else short(kind)
        raise ValueError(f"kind: expected one of {', '.join(kinds)} or 'package.module:Class', got {got}")
    if kind in OBJECTIVES:
        return OBJECTIVES[kind]
    if kind in PRESETS:
        return PRESETS[kind][0]
    if ":" not in kind:
        raise ValueError(f"kind: expected {suggestion(kind, kinds)}, or 'package.module:Class', got {short(kind)}")
    try:
        chosen = load_dotted(kind)
    except ValueError as error:
        raise ValueError(f"kind: {error}") from error
    if not (isinstance(chosen, type) and dataclasses.is_dataclass(chosen)):
        raise ValueError(f"kind: expected a dataclass, got {short(kind)}")
    if not issubclass(chosen, Objective):
        raise ValueError(f"kind: expected a subclass of aapa.Objective, got {short(kind)}")
    if missing := sorted(getattr(chosen, "__abstractmethods__", ())):
        raise ValueError(f"kind: expected a class with {', '.join(missing)}, got {short(kind)}")
    return chosen


def objective_kind(objective: Any) -> str:
    """The `kind` under which a recipe names this objective."""
    from aapa.objectives import OBJECTIVES

    chosen = type(objective)
    for kind, known in OBJECTIVES.items():
        if chosen is known:
            return kind
    return f"{chosen.__module__}:{chosen.__qualname__}"


def parse_objective(table: Any) -> Any:
    """The objective of a table `{kind = …, …hyperparameters}`; an objective already built is passed through.

    Raises:
        ValueError, pydantic.ValidationError: an unknown kind or key, a wrong type, a value out of range.
    """
    if dataclasses.is_dataclass(table) and not isinstance(table, type):
        return table
    if not isinstance(table, dict):
        raise ValueError(f"expected a table with the key kind, got {short(table)}")
    from aapa.objectives import PRESETS

    kind = table.get("kind")
    chosen = objective_class(kind)
    preset = PRESETS[kind][1] if kind in PRESETS else {}
    fields = {key: value for key, value in _over(preset, table).items() if key != "kind"}
    return TypeAdapter(strict_type(chosen)).validate_python(fields)


def _over(preset: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The preset's values with the table's on top, key by key also in tables within."""
    merged = preset | table
    for key, value in preset.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            merged[key] = _over(value, table[key])
    return merged


def dump_objective(objective: Any) -> dict[str, Any]:
    """The table of an objective, the inverse of `parse_objective`."""
    return {"kind": objective_kind(objective), **dataclasses.asdict(objective)}


@functools.cache
def strict_type(cls: type) -> Any:
    """A type that validates tables into the dataclass `cls`, as strictly as the rest of the recipe.

    pydantic validates a plain dataclass leniently ("3" for 3, unknown keys dropped) and takes no settings
    for it, so its fields are mirrored in a model of the same name and the dataclass built from that.
    """
    model = table_model(cls)

    def build(values: BaseModel) -> Any:
        return cls(**{name: getattr(values, name) for name in model.model_fields})

    return Annotated[model, AfterValidator(build)]


@functools.cache
def table_model(cls: type) -> type[BaseModel]:
    """A model with the fields, types and defaults of the dataclass `cls`."""
    hints = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = ...
        fields[field.name] = (_strict_annotation(hints[field.name]), default)
    return create_model(cls.__name__, __config__=TABLE, **fields)


def _strict_annotation(annotation: Any) -> Any:
    if dataclasses.is_dataclass(annotation):
        return strict_type(annotation)  # type: ignore[arg-type]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_strict_annotation, arguments))
    if origin is tuple:
        return Annotated[annotation, Strict(False)]  # TOML has arrays only
    return annotation
