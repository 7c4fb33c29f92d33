"""Files that a recipe names, seen from the recipe's folder; on the command line, from the current one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from aapa.engine.hub import looks_like_hub_name
from aapa.engine.recipe import problems

# Directories that a recipe names, and what their fields can say instead of a path.
_DIRECTORIES = {
    ("model", "source"): ("scratch",),
    ("discriminator", "source"): (),
    ("discriminator", "reward_model"): (),
    ("discriminator", "trunk"): ("base", "stage_start"),
}


def resolve_paths(table: dict[str, Any], folder: Path, overridden: Collection[problems.Path]) -> None:
    """Make files and directories absolute, in place: of the data, reward functions, models and discriminators.

    Values of a wrong type stay for the schema to refuse; OWNER/NAME is a path only where a directory has that name.

    Args:
        folder: of the recipe.
        overridden: paths of the table that were set on the command line.
    """

    def base(*path: str | int) -> Path:
        given = any(path[: len(start)] == start for start in overridden)
        return Path.cwd() if given else folder

    _resolve_directories(table, base)
    data = table.get("data")
    if isinstance(data, dict):
        for field in ("files", "evaluation_files"):
            value = data.get(field)
            if isinstance(value, str) and value:
                data[field] = str(base("data", field) / value)
            elif isinstance(value, list):
                data[field] = [
                    str(base("data", field, place) / item) if isinstance(item, str) and item else item
                    for place, item in enumerate(value)
                ]
        name = data.get("dataset")
        if isinstance(name, str) and name and (base("data", "dataset") / name).exists():
            data["dataset"] = str(base("data", "dataset") / name)
    for place, stage in enumerate(_tables(table.get("stages"))):
        for number, reward in enumerate(_tables(stage.get("rewards"))):
            _resolve_reward(reward, base("stages", place, "rewards", number, "function"))
    evaluation = table.get("evaluation")
    for number, reward in enumerate(_tables(evaluation.get("rewards")) if isinstance(evaluation, dict) else []):
        _resolve_reward(reward, base("evaluation", "rewards", number, "function"))


def _resolve_directories(table: dict[str, Any], base: Callable[..., Path]) -> None:
    for (name, field), words in _DIRECTORIES.items():
        values = table.get(name)
        value = values.get(field) if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(value, str) or value in ("", *words):
            continue
        directory = base(name, field) / value
        if directory.is_dir() or (name, field) != ("model", "source") or not looks_like_hub_name(value):
            values[field] = str(directory)


def _resolve_reward(reward: dict[str, Any], folder: Path) -> None:
    function = reward.get("function")
    if isinstance(function, str) and ".py:" in function:
        reward["function"] = str(folder / function)


def _tables(value: Any) -> list[dict[str, Any]]:
    """The tables of an array, at their places; others become empty ones."""
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []
