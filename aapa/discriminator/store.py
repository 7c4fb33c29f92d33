"""Frozen discriminators on disk, and the cache of expert sentence states."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from aapa.discriminator.base import Discriminator, Origin, Trunk, content_hash, facts, table_hash
from aapa.discriminator.cosine import CosineDiscriminator
from aapa.discriminator.quality import QualityCard
from aapa.discriminator.sentence import SentenceDiscriminator
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, anchored_spans

WEIGHTS, RECORD = "discriminator.safetensors", "discriminator.json"
KINDS: dict[str, type[SentenceDiscriminator] | type[CosineDiscriminator]] = {
    "sentence": SentenceDiscriminator,
    "cosine": CosineDiscriminator,
}


def freeze(
    discriminator: Discriminator,
    directory: Path | str,
    trunk: Mapping[str, Any] | None = None,
    card: QualityCard | None = None,
) -> Path:
    """Writes a discriminator: weights as safetensors, everything else as JSON with SHA-256 sums.

    Args:
        directory: made if need be; files of an earlier discriminator are replaced.
        trunk: what the record says of the trunk beside its hash (where it came from), JSON-able.
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
    _write(directory / WEIGHTS, weights)
    _write(directory / RECORD, _sealed(record))
    return directory


def load(directory: Path | str, expected_hash: str | None = None) -> Discriminator:
    """Reads a frozen discriminator back.

    Args:
        expected_hash: of the discriminator that a run was started with.

    Raises:
        ValueError: a file is missing or not as it was written, or the discriminator is another than expected.
    """
    directory = Path(directory)
    record = read_record(directory)
    weights = _read(directory / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != record["weights_sha256"]:
        raise ValueError(f"{directory / WEIGHTS}: expected SHA-256 {record['weights_sha256']}, got a changed file")
    if record["kind"] not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {record['kind']!r} in {directory}")
    discriminator = KINDS[record["kind"]].restore(
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


def _write(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


class ExpertCache:
    """Sentence states of expert responses, computed once and kept on disk by content.

    A state is found again by the hash of what it depends on: trunk, layer, table, granularity, prompt and
    response. So a changed expert or trunk never meets a stale state. Files are named after the SHA-256 of
    their content.

    Args:
        trunk: computes what is missing.
        origin: trunk hash, layer and table of the discriminator that will score; the table must be `table`.
        table: segmentation table.
        granularity: of the discriminator.
        delimiters: ids of an opening and a closing token; sentences between them are left out.
        directory: None keeps the states in memory only.

    Raises:
        ValueError: the trunk or the table is another than the discriminator's, or a cache file was changed.
    """

    def __init__(
        self,
        trunk: Trunk,
        origin: Origin,
        table: SentenceTable,
        granularity: Granularity = "sentence",
        directory: Path | str | None = None,
        delimiters: tuple[int, int] | None = None,
    ) -> None:
        for name, expected, got in (
            ("trunk", origin.trunk, trunk.hash),
            ("table", origin.table, table_hash(table)),
        ):
            if expected != got:
                raise ValueError(f"{name}: expected hash {expected}, got {got}")
        self.trunk, self.origin, self.table, self.granularity = trunk, origin, table, granularity
        self.delimiters = delimiters
        self.directory = None if directory is None else Path(directory)
        self._state: dict[str, Tensor] = {}
        self._key: dict[int, str] = {}
        if self.directory is not None and self.directory.is_dir():
            for path in sorted(self.directory.glob("*.safetensors")):
                self._open(path)

    def add(self, examples: Mapping[int, tuple[Sequence[int], Sequence[int]]]) -> int:
        """Makes the states of examples available, computing those that are not cached.

        Args:
            examples: example id → (prompt ids, expert ids).

        Returns:
            How many had to be computed.
        """
        keys = {i: self._content_key(prompt, expert) for i, (prompt, expert) in examples.items()}
        self._key.update(keys)
        missing = {key: examples[i] for i, key in keys.items() if key not in self._state}
        if missing:
            prompts, experts = ([list(pair[k]) for pair in missing.values()] for k in (0, 1))
            cu_sents, kept = anchored_spans(prompts, experts, self.table, self.granularity, self.delimiters)
            state_SD = self.trunk.sentence_states(prompts, experts, cu_sents).float().cpu()
            states = state_SD.split([len(cu) - 1 for cu in cu_sents])
            computed = {key: state[rows] for key, state, rows in zip(missing, states, kept, strict=True)}
            self._state.update(computed)
            if self.directory is not None:
                self.directory.mkdir(parents=True, exist_ok=True)
                content = save_tensors(computed)
                _write(self.directory / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)
        return len(missing)

    def pack(self, ids: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Expert sentences of examples, group by group: (expert_ED float32, cu_expert int32 [G + 1])."""
        states = [self._state[self._key[i]] for i in ids]
        counts = torch.tensor([0, *(len(state) for state in states)])
        empty = torch.zeros(0, self.trunk.hidden_size)
        return torch.cat([empty, *states]).to(device), counts.cumsum(0).int().to(device)

    def _content_key(self, prompt: Sequence[int], expert: Sequence[int]) -> str:
        origin = self.origin
        return content_hash(
            {
                "trunk": origin.trunk,
                "layer": origin.layer,
                "table": origin.table,
                "granularity": self.granularity,
                "delimiters": self.delimiters,
                "prompt": list(prompt),
                "expert": list(expert),
            },
            {},
        )

    def _open(self, path: Path) -> None:
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            raise ValueError(f"{path}: expected SHA-256 {path.stem}, got a changed file; delete it to compute it anew")
        try:
            with safe_open(path, framework="pt") as file:
                self._state.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
