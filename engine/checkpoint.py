"""Checkpoints: everything needed to go on bit-identically, in safetensors and JSON, verified before it is read.

A checkpoint is a directory `checkpoints/step-<n>/` with weights and optimizer moments under their Hugging Face names
(so that no file depends on the parallel layout), `state.json`, and `manifest.json` with the size and SHA-256 of every
file. It is written beside its place and renamed into it; the newest valid one is found by looking, not by a pointer.

Random numbers need no state: every draw is seeded by what it is for (run seed, stage, step, sample).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from aapa.engine.errors import UserError
from aapa.engine.hf_directory import replace_directory
from aapa.engine.manifest import MANIFEST, file_facts, sync

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their manifest."""

    path: Path
    state: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A group of tensors: "weights", or an optimizer moment."""
        return load_file(self.path / f"{name}.safetensors")


def save(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    tensors: Mapping[str, Iterable[tuple[str, Tensor]]],
    keep: int,
    write: bool = True,
) -> None:
    """Write `step-<step>` under `folder` and remove all but the newest `keep`.

    Args:
        state: JSON-able.
        tensors: groups of (name, tensor) streams; collective, so every rank passes them in.
        write: only the rank with `write` keeps and writes them.
    """
    if not write:
        for stream in tensors.values():
            for _ in stream:
                pass
        return
    staging = folder / f".step-{step:08d}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name, stream in tensors.items():
        whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in stream}
        save_file(whole, staging / f"{name}.safetensors")
    (staging / STATE).write_text(json.dumps(state, indent=1, allow_nan=True))
    manifest = {file.name: file_facts(file) for file in sorted(staging.iterdir())}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for file in staging.iterdir():
        sync(file)
    target = folder / f"step-{step:08d}"
    replace_directory(staging, target)
    sync(folder)
    # Later steps are of a run that fell back before them because they were damaged.
    others = [path for path in sorted(folder.glob("step-*"), reverse=True) if path != target]
    earlier = [path for path in others if path.name < target.name]
    for old in [path for path in others if path not in earlier[: keep - 1]]:
        shutil.rmtree(old)


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and one line for each newer one that was refused."""
    refused: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = _problem(path)
        if problem is None:
            return Checkpoint(path, json.loads((path / STATE).read_text())), refused
        refused.append(f"{path}: {problem}")
    return None, refused


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises:
        UserError: a file of it is missing or changed.
    """
    problem = _problem(path)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    return Checkpoint(path, json.loads((path / STATE).read_text()))


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, by name; None if nothing is."""
    try:
        manifest: Any = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: expected a readable manifest, got {error}"
    if not isinstance(manifest, dict):
        return f"{MANIFEST}: expected a table of files, got {type(manifest).__name__}"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name}: expected a file, got none"
        if file_facts(file) != expected:
            return f"{name}: expected the size and SHA-256 of the manifest, got others"
    return None if STATE in manifest else f"{STATE}: expected in the manifest, got none"
