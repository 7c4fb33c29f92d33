"""A directory that is whole or refused: a manifest of sizes and SHA-256, checked before any file is opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aapa.engine.errors import UserError
from aapa.engine.hf_directory import replace_directory

MANIFEST = "manifest.json"
# The hash of everything else that the manifest says.
OWN = "sha256"


def commit(staging: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Give a finished directory its manifest, write everything through to the disk, and rename it into its place.

    Args:
        facts: what else the manifest says, JSON-able.
    """
    files = {_name(file, staging): _facts(file) for file in _files(staging)}
    manifest = {**facts, "files": files}
    (staging / MANIFEST).write_text(json.dumps({**manifest, OWN: _own_hash(manifest)}, indent=1))
    folders = [staging, *(path for path in staging.rglob("*") if path.is_dir())]
    for path in [*_files(staging), staging / MANIFEST, *folders]:
        _sync(path)
    replace_directory(staging, target)
    _sync(target.parent)


def verify(directory: Path, field: str) -> dict[str, Any]:
    """The manifest of a directory whose files are those that it lists, byte by byte.

    Raises:
        UserError: no readable manifest, or a file that is missing, changed or not listed, by name.
    """
    manifest = _read(directory, field)
    listed = manifest["files"]
    found = {_name(file, directory): file for file in _files(directory)}
    for name, facts in listed.items():
        if name not in found:
            raise UserError(f"{field}: expected a file {name!r} in {directory}, as its manifest says, got none")
        if found[name].stat().st_size != facts.get("bytes"):
            got = found[name].stat().st_size
            raise UserError(f"{field}: expected {facts.get('bytes')} bytes in {directory / name}, got {got}")
        if _facts(found[name]) != facts:
            raise UserError(f"{field}: expected the SHA-256 of the manifest for {directory / name}, got another")
    for name in found.keys() - listed.keys():
        raise UserError(f"{field}: expected no file {name!r} in {directory}, for its manifest has none, got one")
    return manifest


def _read(directory: Path, field: str) -> dict[str, Any]:
    file = directory / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: expected a readable manifest, got {file}: {error}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise UserError(f"{field}: expected a table of files in {file}, got none")
    if manifest.pop(OWN, None) != _own_hash(manifest):
        raise UserError(f"{field}: expected {file} as it was written, got one that was changed")
    return manifest


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)


def _name(file: Path, directory: Path) -> str:
    return file.relative_to(directory).as_posix()


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
