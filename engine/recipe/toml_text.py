"""Writes tables as TOML; the standard library only reads it."""

from __future__ import annotations

import datetime
import json
import math
import re
from typing import Any


def toml_text(table: dict[str, Any]) -> str:
    """The table as TOML that `tomllib` reads back to an equal table; keys whose value is None are left out.

    Top-level arrays of tables are written as `[[name]]`, tables as `[name]`, everything else inline.

    Raises:
        ValueError: a value that TOML, or a recipe, cannot hold.
    """
    lines: list[str] = []
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and not _tables(value)}
    _write(plain, (), lines)
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{_key(key)}]"]
            _write(value, (key,), lines)
        elif _tables(value):
            for row in value:
                lines += ["", f"[[{_key(key)}]]"]
                _write(row, (key,), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, dict) for row in value)


def _write(table: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines += [
        f"{_key(key)} = {inline(value)}" for key, value in table.items() if key not in inner and value is not None
    ]
    for key, value in inner.items():
        header = ".".join(_key(part) for part in (*path, key))
        lines += ["", f"[{header}]"]
        _write(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def inline(value: Any) -> str:
    """A value as it stands behind a key."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"toml: expected finite numbers, got {value}")
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{_key(key)} = {inline(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(pairs) + " }"
    raise ValueError(f"toml: expected numbers, strings, arrays and tables, got {value!r}")
