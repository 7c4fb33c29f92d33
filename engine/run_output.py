"""Where a run may write: a new directory, or one that a run wrote before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from aapa.engine.errors import UserError
from aapa.engine.recipe import Recipe

RECIPE_FILE = "recipe.toml"
# By this line a run's directory is known.
MARK = "# The recipe of this run with every default, written by `aapa train`.\n"
# What a run would write over.
WRITTEN = (
    "metrics.jsonl",
    "samples.jsonl",
    "summary.json",
    "data.json",
    "report.html",
    "curves.png",
    "tensorboard",
    "checkpoints",
    "stages",
    "final",
    "discriminator",
    "experts",
)


def check_output(directory: Path) -> None:
    """Look at a run directory before anything is written.

    Raises:
        UserError: it cannot be made or written to, or it holds files that no run wrote and this one would replace.
    """
    there = directory.absolute()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(there)  # a name that is too long is none that is merely absent
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"output: expected a directory to write to, got {directory}: {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"output: expected a directory to write to, got {directory}: {there} cannot be written to")
    if there != directory.absolute() or _is_mine(directory):
        return
    found = [name for name in (RECIPE_FILE, *WRITTEN) if os.path.lexists(directory / name)]
    # A model's directory is no place for a run, whatever it is called.
    found += sorted(file.name for pattern in ("config.json", "*.safetensors") for file in directory.glob(pattern))
    if found:
        raise UserError(
            f"output: expected a new directory or one of a run, got {directory} with {', '.join(found)} that no run "
            "wrote; choose another --output"
        )


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Leave the resolved recipe in the run directory."""
    replace_file(directory / RECIPE_FILE, (MARK + recipe.to_toml()).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a file is never half of one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _is_mine(directory: Path) -> bool:
    try:
        with open(directory / RECIPE_FILE, encoding="utf-8", errors="replace") as file:
            return file.readline() == MARK
    except OSError:
        return False
