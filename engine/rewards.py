"""Reward functions in TRL's signature, by dotted path."""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aapa.engine.errors import UserError
from aapa.engine.examples import Example

RewardFunction = Callable[..., list[float | None]]


def load_function(path: str, field: str) -> Callable[..., Any]:
    """The callable at `package.module:name`.

    Raises:
        UserError: naming the recipe's field, when there is no such module or callable.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"{field}: expected 'package.module:name', got {path!r}")
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{field}: expected an importable module, got {path!r}: {error}") from None
    if not callable(found):
        raise UserError(f"{field}: expected a callable in {module_name}, got {path!r}")
    return found


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of reward functions.

    Attributes:
        functions: (dotted path, function, weight).
    """

    functions: tuple[tuple[str, RewardFunction, float], ...]

    def __call__(self, examples: Sequence[Example], completions: list[str], finished: list[bool]) -> list[float]:
        """Reward of each completion: the sum over the functions that score it; NaN, which masks it, where none does.

        Every column of the examples arrives as a list; `finished` says which completions ended by themselves.
        """
        prompts = [example.prompt for example in examples]
        names = sorted(set().union(*(example.columns for example in examples)))
        columns = {name: [example.columns.get(name) for example in examples] for name in names}
        total = [math.nan] * len(completions)
        for path, function, weight in self.functions:
            values = function(prompts=prompts, completions=completions, **columns, finished=finished)
            for index, value in enumerate(_checked(path, values, len(completions))):
                if not math.isnan(value):
                    total[index] = weight * value + (0.0 if math.isnan(total[index]) else total[index])
        return total


def _checked(path: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list | tuple) or len(values) != count:
        got = f"{len(values)} values" if isinstance(values, list | tuple) else type(values).__name__
        raise UserError(f"rewards.{path}: expected a list of {count} numbers, got {got}")
    for index, value in enumerate(values):
        # None is the documented way to say "not scored"; a NaN is a mistake in the function.
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise UserError(f"rewards.{path}[{index}]: expected a finite number or None, got {value!r}")
    return [math.nan if value is None else float(value) for value in values]
