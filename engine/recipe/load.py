"""Reads recipes from TOML files and tables."""

from __future__ import annotations

import copy
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aapa.engine.recipe import problems as report
from aapa.engine.recipe.checks import environment_problems
from aapa.engine.recipe.overrides import apply_overrides, parse_overrides
from aapa.engine.recipe.paths import resolve_paths
from aapa.engine.recipe.problems import Problem, RecipeError
from aapa.engine.recipe.schema import Recipe
from aapa.engine.recipe.validation import validation_problems

Edit = Callable[[dict[str, Any]], None]
SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


def load_recipe(path: str | Path, overrides: Sequence[str] = (), edit: Edit | None = None) -> Recipe:
    """The recipe of a file, with overrides applied and everything checked that can be without a device.

    Args:
        path: a TOML file, or the name of a recipe that ships with the package.
        overrides: command line words such as `["--stages.sft.steps", "20", "--seed=1"]`.
        edit: changes the table, paths resolved, before it is validated.

    Raises:
        RecipeError: one line per problem.
    """
    file = _find(path)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{file}: expected a readable file, got {error.strerror or error}") from error
    except ValueError as error:
        raise RecipeError(f"{file}: expected TOML, got {error}") from error
    pairs, found = parse_overrides(overrides)
    paths, unset = apply_overrides(table, pairs)
    report.raise_problems([*found, *unset], "command line")
    resolve_paths(table, file.resolve().parent, set(paths))
    if edit is not None:
        edit(table)
    recipe = parse_recipe(table, label=file.name, overridden=paths)
    report.raise_problems(environment_problems(recipe), file.name, paths)
    return recipe


def parse_recipe(table: dict[str, Any], *, label: str = "recipe", overridden: Iterable[report.Path] = ()) -> Recipe:
    """The recipe of a table; directories and importable names are not looked up.

    Args:
        table: as `tomllib` reads it; it is not changed.
        label: what errors call it.
        overridden: paths that came from the command line, for errors.

    Raises:
        RecipeError: one line per problem.
    """
    overridden = list(overridden)
    report.raise_problems(_not_finite(table), label, overridden)
    try:
        return Recipe.model_validate(copy.deepcopy(table))
    except ValidationError as error:
        problems = validation_problems(error, table, Recipe)
        report.raise_problems(problems, label, overridden)
        raise


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def _find(path: str | Path) -> Path:
    file = Path(path)
    shipped = SHIPPED / f"{path}.toml"
    if file.is_file():
        return file
    if file.name == str(path) and shipped.is_file():
        return shipped
    names = ", ".join(shipped_recipes())
    raise RecipeError(f"recipe: expected a TOML file or one of {names}, got {str(path)!r}")


def _not_finite(value: Any, path: report.Path = ()) -> list[Problem]:
    """NaN and infinities anywhere, also where the schema leaves values open."""
    if isinstance(value, float) and not math.isfinite(value):
        return [(path, f"expected a finite number, got {value}")]
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return [problem for key, item in items for problem in _not_finite(item, (*path, key))]
