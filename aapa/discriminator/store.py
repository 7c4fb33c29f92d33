"""Frozen discriminators on disk."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from aapa.discriminator.base import Frozen, Kind, Origin, content_hash, facts
from aapa.discriminator.cosine import CosineDiscriminator
from aapa.discriminator.polar import PolarDiscriminator
from aapa.discriminator.quality import QualityCard
from aapa.discriminator.sentence import SentenceDiscriminator

WEIGHTS, RECORD = "discriminator.safetensors", "discriminator.json"
KINDS: Mapping[str, Kind] = {
    "sentence": SentenceDiscriminator,
    "cosine": CosineDiscriminator,
    "polar": PolarDiscriminator,
}


def freeze(
    discriminator: Frozen,
    directory: Path | str,
    trunk: Mapping[str, Any] | None = None,
    card: QualityCard | None = None,
) -> Path:
    """Writes a discriminator: weights as safetensors, everything else as JSON with SHA-256 sums.

    Args:
        directory: made if need be; files of an earlier discriminator are replaced.
        trunk: what the record says of the trunk, or the reward model, beside its hash (where it came from), JSON-able.
        card: held-out figures to keep with it.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: t.detach().cpu().contiguous() for name, t in discriminator.tensors().items()})
    record = {
        **facts(discriminator),
        "hash": discriminator.hash,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "trunk": dict(trunk or {}),
        "card": None if card is None else card.to_json(),
    }
    write_whole(directory / WEIGHTS, weights)
    write_whole(directory / RECORD, _sealed(record))
    return directory


def load(directory: Path | str, expected_hash: str | None = None, kinds: Mapping[str, Kind] | None = None) -> Frozen:
    """Reads a frozen discriminator back.

    Args:
        expected_hash: of the discriminator that a run was started with.
        kinds: classes of one's own by the kind that their records name. A record by itself imports nothing.

    Raises:
        ValueError: a file is missing or not as it was written, or the discriminator is another than expected.
    """
    directory = Path(directory)
    record = read_record(directory)
    weights = _read(directory / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != record["weights_sha256"]:
        raise ValueError(f"{directory / WEIGHTS}: expected SHA-256 {record['weights_sha256']}, got a changed file")
    known = {**KINDS, **(kinds or {})}
    if record["kind"] not in known:
        raise ValueError(f"kind: expected one of {', '.join(known)}, got {record['kind']!r} in {directory}")
    discriminator = known[record["kind"]].restore(
        load_tensors(weights),
        record["scalars"],
        record["mean"],
        record["std"],
        Origin(**record["origin"]),
        record["granularity"],
    )
    for expected in (record["hash"], expected_hash):
        if expected is not None and discriminator.hash != expected:
            raise ValueError(f"{directory}: expected discriminator {expected}, got {discriminator.hash}")
    return discriminator


def load_card(directory: Path | str) -> QualityCard | None:
    """Held-out figures kept with a frozen discriminator; raises as `load` does."""
    card = read_record(Path(directory))["card"]
    return None if card is None else QualityCard.from_json(card)


def read_record(directory: Path) -> dict[str, Any]:
    """The JSON record of a frozen discriminator, refused with a ValueError if a byte of it was changed."""
    path = directory / RECORD
    content = _read(path)
    try:
        record = json.loads(content)
        seal = record.pop("seal")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a discriminator's record, got a changed file ({error})") from error
    # Written again from its own values it must give the same bytes, so not even white space changes unseen.
    if content != _sealed(record):
        raise ValueError(f"{path}: expected seal {seal}, got a changed file")
    return record


def _sealed(record: Mapping[str, Any]) -> bytes:
    body = {**record, "seal": content_hash(record, {})}
    return (json.dumps(body, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a file of a frozen discriminator, got {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Puts a file in its place in one step: a reader sees the old content or the new, never a part."""
    # Process ids are not enough of a name: two machines that share the directory may have equal ones.
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with staged.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
