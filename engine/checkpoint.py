"""Checkpoints: everything needed to go on bit-identically, verified before it is read.

A checkpoint is a directory `checkpoints/step-<n>/`: weights and what the optimizer keeps in Megatron's distributed
format, of which every rank writes its parts and which is read at any parallel layout; `state.json`; and
`manifest.json` with the size and SHA-256 of every file. It is written beside its place and renamed into it; the newest
valid one is found by looking, not by a pointer.

Random numbers need no state: every draw is seeded by what it is for (run seed, stage, step, sample).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aapa
from aapa.engine import manifest
from aapa.engine.errors import UserError

if TYPE_CHECKING:
    from aapa.engine.policy.parallel import Parallel

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their manifest."""

    path: Path
    state: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
    keep: int,
    parallel: Parallel,
) -> None:
    """Write `step-<step>` under `folder`, which all ranks see, and remove all but the newest `keep`; a collective.

    Args:
        state: JSON-able.
        write: writes this rank's tensors into an empty directory; a collective that returns when all ranks have.
    """
    staging, target = folder / f".step-{step:08d}.staging", folder / f"step-{step:08d}"
    if parallel.is_main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    parallel.barrier()
    write(staging)
    if parallel.is_main:
        layout = {name: getattr(parallel, name) for name in ("tensor", "pipeline", "context", "data")}
        (staging / STATE).write_text(json.dumps(state, indent=1, allow_nan=True))
        manifest.commit(staging, target, {"aapa": aapa.__version__, "layout": layout})
        # Later steps are of a run that fell back before them because they were damaged.
        others = [path for path in sorted(folder.glob("step-*"), reverse=True) if path != target]
        earlier = [path for path in others if path.name < target.name]
        for old in [path for path in others if path not in earlier[: keep - 1]]:
            shutil.rmtree(old)
    parallel.barrier()


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and one line for each newer one that was refused."""
    refused: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path), refused
        except UserError as error:
            refused.append(str(error))
    return None, refused


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises:
        UserError: a file of it is missing, changed or not listed, by name.
    """
    files = manifest.verify(path, "checkpoint")["files"]
    if STATE not in files:
        raise UserError(f"checkpoint: expected {STATE} in the manifest of {path}, got none")
    return Checkpoint(path, json.loads((path / STATE).read_text()))
