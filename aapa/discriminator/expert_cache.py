"""Expert sentence states: computed once, found again by content, read through memory maps.

A directory of the cache holds shards, safetensors files named after the SHA-256 of their content:

    states   [R, D], the dtype of the cache   sentence states of N experts, one expert after the other
    keys     uint8 [N, 32]                    of each expert, SHA-256 of all that its states depend on
    offsets  int64 [N + 1]                    expert n has the rows offsets[n] … offsets[n + 1]

Shards are added and never changed, so any number of processes may read and add at the same time. Where several compute
the same expert at once, several shards hold it, and the first by name counts.

Shape legend: S sentences, R sentences in a shard, E packed expert sentences, D hidden size of the trunk, N experts that
the cache knows, M examples of one call, G groups (prompts).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from aapa.discriminator.base import Origin, Trunk, canonical_json, table_hash
from aapa.discriminator.store import write_whole
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, anchored_spans

StateDtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Prompt and expert tokens of a shard. Twenty thousand sentences or so: enough for a trunk to fill its micro-batches,
# little enough to lose.
BATCH_TOKENS = 1 << 18
KEY_BYTES = 32
Example = tuple[Sequence[int], Sequence[int]]


class ExpertCache:
    """Sentence states of expert responses, computed once and kept on disk by content.

    A state is found again by the hash of what it depends on: trunk, layer, table, granularity, delimiters, dtype,
    prompt and response. So a changed expert or trunk never meets a stale state. Only the index is in memory, some
    64 bytes an expert; states stay on disk until `pack` reads them. What other processes add after this one opened the
    directory is not seen, so processes that compute together and opened it in the same state agree on what is missing.

    Args:
        trunk: computes what is missing.
        origin: trunk hash, layer and table of the discriminator that will score; the table must be `table`.
        table: segmentation table.
        granularity: of the discriminator.
        directory: None keeps the states in memory only.
        delimiters: ids of an opening and a closing token; sentences between them are left out.
        dtype: of the states as they are kept.
        batch_tokens: prompt and expert tokens that are computed and written at once; one longer expert goes alone.
        verify: whether the content of every shard is compared with its name when opened, which reads all of it.

    Raises:
        ValueError: the trunk or the table is another than the discriminator's, a setting is none, or a shard was
            changed.
    """

    def __init__(
        self,
        trunk: Trunk,
        origin: Origin,
        table: SentenceTable,
        granularity: Granularity = "sentence",
        directory: Path | str | None = None,
        delimiters: tuple[int, int] | None = None,
        *,
        dtype: StateDtype = "float32",
        batch_tokens: int = BATCH_TOKENS,
        verify: bool = True,
    ) -> None:
        for name, expected, got in (
            ("trunk", origin.trunk, trunk.hash),
            ("table", origin.table, table_hash(table)),
        ):
            if expected != got:
                raise ValueError(f"{name}: expected hash {expected}, got {got}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
        self.trunk, self.origin, self.table, self.granularity = trunk, origin, table, granularity
        self.delimiters, self.dtype, self.batch_tokens = delimiters, DTYPES[dtype], batch_tokens
        self.directory = None if directory is None else Path(directory)
        facts = {
            "trunk": origin.trunk,
            "layer": origin.layer,
            "table": origin.table,
            "granularity": granularity,
            "delimiters": delimiters,
            "dtype": dtype,
        }
        self._facts = hashlib.sha256(canonical_json(facts).encode())
        self._shards: list[Tensor] = []
        self._index = _Index()
        self._entry: dict[int, int] = {}
        if self.directory is not None and self.directory.is_dir():
            for path in sorted(self.directory.glob("*.safetensors")):
                if verify:
                    _verify(path)
                self._include(*_map_shard(path))

    def add(self, examples: Mapping[int, Example], on_progress: Callable[[int, int], None] | None = None) -> int:
        """Makes the states of examples available, computing those that are not cached.

        What is missing is computed in batches of `batch_tokens`, and each is on disk before the next begins: who is
        interrupted loses one batch.

        Args:
            examples: example id → (prompt ids, expert ids). Missing ones are asked for twice, so a mapping may make
                them as it goes instead of holding them all.
            on_progress: called after each batch with the number of experts computed so far and that of all to compute.

        Returns:
            How many had to be computed; equal ones count once.

        Raises:
            ValueError: a state is beyond the range of the dtype.
        """
        ids, keys = [], bytearray()
        for i, (prompt, expert) in examples.items():
            ids.append(i)
            keys += self._key(prompt, expert)
        key_M = np.frombuffer(keys, f"S{KEY_BYTES}")
        entry_M = self._index.find(key_M)
        absent = np.flatnonzero(entry_M < 0)
        firsts = np.unique(key_M[absent], return_index=True)[1]
        missing = absent[np.sort(firsts)]
        done = 0
        for places, prompts, experts in self._batches(examples, ids, missing.tolist()):
            state_RD, counts = self._compute(prompts, experts)
            self._keep(state_RD, key_M[places], np.cumsum([0, *counts]))
            done += len(places)
            if on_progress is not None:
                on_progress(done, len(missing))
        if len(missing):
            entry_M = self._index.find(key_M)
        self._entry.update(zip(ids, entry_M.tolist(), strict=True))
        return len(missing)

    def pack(self, ids: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Expert sentences of examples, group by group: (expert_ED float32, cu_expert int32 [G + 1]).

        Raises:
            ValueError: an example was never added.
        """
        try:
            entries = [self._entry[i] for i in ids]
        except KeyError as error:
            raise ValueError(f"ids: expected examples that were added, got {error}") from error
        places = self._index.place_N3[entries].tolist()
        empty = torch.zeros(0, self.trunk.hidden_size, dtype=self.dtype)
        expert_ED = torch.cat([empty, *(self._shards[shard][first:last] for shard, first, last in places)])
        counts = torch.tensor([0, *(last - first for _, first, last in places)])
        return expert_ED.float().to(device), counts.cumsum(0).int().to(device)

    def _key(self, prompt: Sequence[int], expert: Sequence[int]) -> bytes:
        digest = self._facts.copy()
        for numbers in ([len(prompt)], prompt, expert):
            digest.update(array("q", numbers).tobytes())
        return digest.digest()

    def _batches(
        self, examples: Mapping[int, Example], ids: list[int], missing: list[int]
    ) -> Iterator[tuple[list[int], list[list[int]], list[list[int]]]]:
        """(places, prompts, experts) of as many missing examples at a time as `batch_tokens` allows."""
        batch: list[tuple[int, list[int], list[int]]] = []
        tokens = 0
        for place in missing:
            prompt, expert = map(list, examples[ids[place]])
            length = len(prompt) + len(expert)
            if batch and tokens + length > self.batch_tokens:
                yield _columns(batch)
                batch, tokens = [], 0
            batch.append((place, prompt, expert))
            tokens += length
        if batch:
            yield _columns(batch)

    def _compute(self, prompts: list[list[int]], experts: list[list[int]]) -> tuple[Tensor, list[int]]:
        """(states of all kept sentences [R, D] in the cache's dtype on the CPU, sentences of each expert)."""
        cu_sents, kept = anchored_spans(prompts, experts, self.table, self.granularity, self.delimiters)
        state_SD = self.trunk.sentence_states(prompts, experts, cu_sents).float().cpu()
        wide_RD = state_SD[torch.cat(kept)]
        state_RD = wide_RD.to(self.dtype)
        if not torch.equal(state_RD.isfinite(), wide_RD.isfinite()):
            raise ValueError(
                f"dtype: expected one that holds states up to {float(wide_RD.abs().max()):.3g}, got {self.dtype}"
            )
        return state_RD, [int(mask.sum()) for mask in kept]

    def _keep(self, state_RD: Tensor, key_N: NDArray[np.bytes_], offsets: NDArray[np.int64]) -> None:
        """Takes in a shard, from disk where there is a directory, so that its memory becomes free."""
        if self.directory is not None:
            keys = torch.from_numpy(key_N.view(np.uint8).reshape(-1, KEY_BYTES))
            tensors = {"states": state_RD, "keys": keys, "offsets": torch.from_numpy(offsets)}
            content = save_tensors(tensors)
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / f"{hashlib.sha256(content).hexdigest()}.safetensors"
            # What has the name has the content. The ranks of a replica all compute the same shards, and a file
            # replaced under a process that maps it would stay on disk beside the new one.
            if not path.exists():
                write_whole(path, content)
            state_RD, _, _ = _map_shard(path)
        self._include(state_RD, key_N, offsets)

    def _include(self, state_RD: Tensor, key_N: NDArray[np.bytes_], offsets: NDArray[np.int64]) -> None:
        shard = np.full(len(key_N), len(self._shards))
        self._index.extend(key_N, np.stack([shard, offsets[:-1], offsets[1:]], axis=1))
        self._shards.append(state_RD)


class _Index:
    """Where each key's states are, as arrays: a dict of a million keys takes ten times the memory.

    Attributes:
        place_N3: int64, of each entry the shard, its first row there, and the row after its last. Entries keep their
            numbers.
    """

    def __init__(self) -> None:
        self.place_N3 = np.empty((0, 3), np.int64)
        # Keys in order, and the entry of each. Hashes may end in zero bytes, which "S" compares like any other, as
        # all have one length.
        self._key_N: NDArray[np.bytes_] = np.empty(0, f"S{KEY_BYTES}")
        self._entry_N = np.empty(0, np.int64)
        # Keys are sorted in when somebody looks one up: once for many shards.
        self._waiting: list[tuple[NDArray[np.bytes_], NDArray[np.int64]]] = []

    def extend(self, key_N: NDArray[np.bytes_], place_N3: NDArray[np.int64]) -> None:
        """Adds entries; of those with one key the first stays the one that is found."""
        self._waiting.append((key_N, place_N3))

    def find(self, key_M: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Entry of each key, int64 [M]; -1 where there is none."""
        self._sort_in()
        return self._find(key_M)

    def _find(self, key_M: NDArray[np.bytes_]) -> NDArray[np.int64]:
        if not len(self._key_N):
            return np.full(len(key_M), -1)
        at_M = np.minimum(np.searchsorted(self._key_N, key_M), len(self._key_N) - 1)
        return np.where(self._key_N[at_M] == key_M, self._entry_N[at_M], -1)

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        keys, places = zip(*self._waiting, strict=True)
        self._waiting = []
        key_N, first_N = np.unique(np.concatenate(keys), return_index=True)
        new_N = self._find(key_N) < 0
        key_N, entry_N = key_N[new_N], first_N[new_N] + len(self.place_N3)
        at_N = np.searchsorted(self._key_N, key_N)
        self._key_N, self._entry_N = np.insert(self._key_N, at_N, key_N), np.insert(self._entry_N, at_N, entry_N)
        self.place_N3 = np.concatenate([self.place_N3, *places])


def _columns(batch: list[tuple[int, list[int], list[int]]]) -> tuple[list[int], list[list[int]], list[list[int]]]:
    places, prompts, experts = zip(*batch, strict=True)
    return list(places), list(prompts), list(experts)


def _verify(path: Path) -> None:
    """Compares a shard's content with its name, in one pass that leaves nothing in memory."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != path.stem:
        raise ValueError(f"{path}: expected SHA-256 {path.stem}, got a changed file; delete it to compute it anew")


def _map_shard(path: Path) -> tuple[Tensor, NDArray[np.bytes_], NDArray[np.int64]]:
    """(states [R, D] as a memory map, keys [N] and offsets [N + 1] in memory).

    safetensors maps the file, and its tensors for torch are views of the map. It keeps no file open, as numpy's maps
    do, so thousands of shards need no descriptors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state_RD, keys, offsets = (file.get_tensor(name) for name in ("states", "keys", "offsets"))
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a shard of expert states, got another file ({error})") from error
    fits = keys.dtype == torch.uint8 and keys.shape == (len(offsets) - 1, KEY_BYTES) and offsets.dtype == torch.int64
    if not fits or [int(offsets[0]), int(offsets[-1])] != [0, len(state_RD)]:
        raise ValueError(
            f"{path}: expected keys uint8 [N, {KEY_BYTES}] and offsets int64 [N + 1] of the states, got {keys.dtype} "
            f"{list(keys.shape)} and {offsets.dtype} {list(offsets.shape)} for {len(state_RD)} states"
        )
    # Copies, or the index would keep pages of the file in memory through the map.
    key_N = keys.numpy().copy().view(f"S{KEY_BYTES}").reshape(-1)
    return state_RD, key_N, offsets.numpy().copy()
