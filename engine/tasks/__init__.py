"""Tasks the package carries, and how a recipe names one of them or the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from aapa.engine.errors import UserError

if TYPE_CHECKING:
    from aapa.engine.examples import Task

TASKS: Final[Mapping[str, str]] = {
    "mini-if": "aapa.engine.tasks.mini_if.task:MiniIF",
    "reasoning": "aapa.engine.tasks.reasoning.task:Reasoning",
}
_METHODS: Final = ("examples", "corpus", "tokenizer", "judge")


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Build a task from its name in `TASKS` or from a dotted path `package.module:Class`.

    Args:
        name: the recipe's `data.task`.
        options: keyword arguments of the class, the recipe's `data.options`.

    Raises:
        UserError: the name leads to no class with a task's methods, or the class does not take the options.
    """
    factory = _load(name)
    given = dict(options or {})
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        parameters = ", ".join(inspect.signature(factory).parameters)
        raise UserError(
            f"data.options: expected keywords of {name} ({parameters}), got {sorted(given)}: {error}"
        ) from None
    return cast("Task", factory(**given))


def _load(name: str) -> type:
    path = TASKS.get(name, name)
    module_name, colon, attribute = path.partition(":")
    expected = f"one of {', '.join(TASKS)} or package.module:Class"
    if not (colon and module_name and attribute):
        raise UserError(f"data.task: expected {expected}, got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that exists but lacks one of its own imports is the author's fault: show the whole trace.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"data.task: expected {expected}, got {name!r}: {error}") from None
    factory = getattr(module, attribute, None)
    if not isinstance(factory, type):
        raise UserError(f"data.task: expected {expected}, got {name!r}: {module_name} has no class {attribute}")
    missing = [method for method in _METHODS if not callable(getattr(factory, method, None))]
    if missing:
        raise UserError(f"data.task: expected a class with {', '.join(_METHODS)}, got {name!r} without {missing}")
    return factory
