"""The cache of expert states; run as a program, this file is one of several processes that use one directory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import ExpertCache, Origin
from aapa.discriminator.base import table_hash
from aapa.discriminator.expert_cache import _Index
from aapa.sentences import build_sentence_table, spans

HIDDEN = 3
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({" aa": 0, " bb": 1, ".": 2, "<eos>": 3}, " aa")),
        eos_token="<eos>",
    )
)
ORIGIN = Origin("trunk-0", -1, table_hash(TABLE))
EXAMPLES = {7: ([0], [0, 2, 1, 2, 3]), 3: ([1, 1], [1, 2]), 5: ([0, 0], [0, 1, 2, 0, 3])}
# Fewer tokens than any example has: each is a batch, and a shard, of its own.
ALONE = 1
Ids = list[list[int]]
Examples = Mapping[int, tuple[list[int], list[int]]]


class CountingTrunk:
    """Sentence state: (first token, number of tokens, prompt length), then zeros."""

    def __init__(self, trunk_hash: str = "trunk-0", hidden_size: int = HIDDEN) -> None:
        self.hash, self.hidden_size, self.calls = trunk_hash, hidden_size, 0
        self.prompts: list[list[int]] = []

    def sentence_states(self, prompts: Ids, responses: Ids, cu_sents: list[Tensor]) -> Tensor:
        self.calls += len(responses)
        self.prompts += prompts
        rows = [
            [response[a], b - a, len(prompt)]
            for prompt, response, cu in zip(prompts, responses, cu_sents, strict=True)
            for a, b in pairwise(cu.tolist())
        ]
        return functional.pad(torch.tensor(rows, dtype=torch.float32).view(-1, 3), (0, self.hidden_size - 3))


class RandomTrunk(CountingTrunk):
    """States that depend on every token of prompt and response, whatever they are computed with."""

    def sentence_states(self, prompts: Ids, responses: Ids, cu_sents: list[Tensor]) -> Tensor:
        super().sentence_states(prompts, responses, cu_sents)
        seeds = [zlib.crc32(repr(pair).encode()) for pair in zip(prompts, responses, strict=True)]
        draws = map(torch.Generator().manual_seed, seeds)
        parts = [torch.randn(len(cu) - 1, HIDDEN, generator=draw) for cu, draw in zip(cu_sents, draws, strict=True)]
        return torch.cat(parts)


def open_cache(trunk: CountingTrunk, directory: Path | None = None, **options: Any) -> ExpertCache:
    return ExpertCache(trunk, ORIGIN, TABLE, directory=directory, **options)


def corpus(size: int, start: int = 0, edition: int = 0) -> dict[int, tuple[list[int], list[int]]]:
    """Examples with unlike experts of one to four sentences; an id's example depends on nothing but the edition."""
    found = {}
    for i in range(start, start + size):
        generator = np.random.default_rng((i, edition))
        sentences = [0, 0, 0, 2] * int(generator.integers(4))
        found[i] = ([i, edition], [*sentences, *generator.integers(0, 2, 9).tolist(), 3])
    return found


def fresh(examples: Examples) -> tuple[Tensor, Tensor]:
    """Packed states of all examples from a cache in memory."""
    cache = open_cache(RandomTrunk())
    cache.add(examples)
    return cache.pack(list(examples))


def shards(directory: Path) -> list[Path]:
    """The directory's files, all of which have to be shards named after their content."""
    files = sorted(directory.iterdir())
    for path in files:
        assert path.name == f"{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors"
    return files


def same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, got, expected))


def test_expert_states_are_computed_once_and_packed(tmp_path: Path) -> None:
    assert [cu.tolist() for cu in spans([e for _, e in EXAMPLES.values()], TABLE)] == [[0, 2, 5], [0, 2], [0, 3, 5]]
    cache = open_cache(CountingTrunk(), tmp_path)
    assert (cache.add(EXAMPLES), cache.add(EXAMPLES)) == (3, 0)
    expert_ED, cu_expert = cache.pack([3, 7, 3])
    assert expert_ED.tolist() == [[1, 2, 2], [0, 2, 1], [1, 3, 1], [1, 2, 2]]
    assert cu_expert.tolist() == [0, 1, 3, 4]
    assert (expert_ED.dtype, cu_expert.dtype) == (torch.float32, torch.int32)
    # Another process finds them on disk; what is new is added beside them.
    again = CountingTrunk()
    second = open_cache(again, tmp_path)
    assert second.add({1: EXAMPLES[7], 2: ([0], [0, 2]), 4: ([0], [0, 2])}) == again.calls == 1
    assert torch.equal(second.pack([1])[0], cache.pack([7])[0])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert cache.pack([])[0].shape == (0, HIDDEN)


@pytest.mark.parametrize(
    "change",
    [
        {"example": ([1], [0, 2, 1, 2, 3])},
        {"example": ([0], [0, 2, 0, 2, 3])},
        {"example": ([0, 0], [2, 1, 2, 3])},
        {"trunk": CountingTrunk("trunk-1"), "origin": replace(ORIGIN, trunk="trunk-1")},
        {"origin": replace(ORIGIN, layer=1)},
        {"granularity": "response"},
        {"delimiters": (8, 9)},
        {"dtype": "bfloat16"},
        {},
    ],
    ids=["prompt", "expert", "border", "trunk", "layer", "granularity", "delimiters", "dtype", "nothing"],
)
def test_a_changed_dependence_is_computed_anew(change: dict[str, Any], tmp_path: Path) -> None:
    open_cache(CountingTrunk(), tmp_path).add(EXAMPLES)
    arguments = {"trunk": CountingTrunk(), "origin": ORIGIN, "example": EXAMPLES[7], **change}
    example = arguments.pop("example")
    assert ExpertCache(table=TABLE, directory=tmp_path, **arguments).add({7: example}) == (1 if change else 0)


def test_a_cache_refuses_another_trunk_table_or_a_changed_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^trunk: expected hash trunk-0, got trunk-1"):
        open_cache(CountingTrunk("trunk-1"))
    with pytest.raises(ValueError, match="^table: expected hash"):
        ExpertCache(CountingTrunk(), replace(ORIGIN, table="z"), TABLE)
    open_cache(CountingTrunk(), tmp_path).add(EXAMPLES)
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"{path.name}: expected SHA-256"):
            open_cache(CountingTrunk(), tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{path.name}: expected a shard of expert states"):
        open_cache(CountingTrunk(), tmp_path, verify=False)
    path.write_bytes(content)
    assert open_cache(CountingTrunk(), tmp_path).add(EXAMPLES) == 0


@pytest.mark.parametrize(
    "change", [{"states": torch.zeros(4, HIDDEN)}, {"keys": torch.zeros(3, 32)}, {"offsets": torch.arange(6)}, None]
)
def test_a_file_that_is_no_shard_is_refused_by_name(change: dict[str, Tensor] | None, tmp_path: Path) -> None:
    open_cache(CountingTrunk(), tmp_path).add(EXAMPLES)
    (path,) = shards(tmp_path)
    content = save({"states": torch.zeros(5, HIDDEN)} if change is None else {**load_file(path), **change})
    path.unlink()
    name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: expected "):
        open_cache(CountingTrunk(), tmp_path)


def test_settings_and_ids_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match="^dtype: expected one of float32, bfloat16, float16, got 'int8'"):
        open_cache(CountingTrunk(), dtype="int8")
    with pytest.raises(ValueError, match="^batch_tokens: expected at least 1, got 0"):
        open_cache(CountingTrunk(), batch_tokens=0)
    with pytest.raises(ValueError, match="^ids: expected examples that were added, got 4"):
        open_cache(CountingTrunk()).pack([4])


def test_the_files_are_as_described(tmp_path: Path) -> None:
    cache, beside = (open_cache(CountingTrunk(), tmp_path) for _ in range(2))
    cache.add(EXAMPLES)
    (path,) = shards(tmp_path)
    tensors, number = load_file(path), path.stat().st_ino
    states, keys, offsets = (tensors.pop(name) for name in ("states", "keys", "offsets"))
    assert not tensors
    assert (states.dtype, keys.dtype, keys.shape) == (torch.float32, torch.uint8, (3, 32))
    assert torch.equal(states, cache.pack([7, 3, 5])[0])
    assert torch.equal(offsets, torch.tensor([0, 2, 3, 5]))
    assert beside.add(EXAMPLES) == 3
    assert path.stat().st_ino == number, "a file that others map is not written again"


@pytest.mark.parametrize("on_disk", [True, False])
def test_experts_without_sentences_and_no_examples(on_disk: bool, tmp_path: Path) -> None:
    cache = open_cache(CountingTrunk(), tmp_path if on_disk else None)
    assert [cache.add(new) for new in ({}, {1: ([0], [])}, {2: ([1], []), 3: ([1], [0, 2])})] == [0, 1, 2]
    if on_disk:
        cache = open_cache(CountingTrunk(), tmp_path)
        assert cache.add({1: ([0], []), 2: ([1], []), 3: ([1], [0, 2])}) == 0
    expert_ED, cu_expert = cache.pack([1, 3, 2])
    assert (expert_ED.tolist(), cu_expert.tolist()) == ([[0, 2, 1]], [0, 0, 1, 1])


def test_sentences_between_delimiters_are_left_out() -> None:
    cache = open_cache(CountingTrunk(), delimiters=(1, 3))
    cache.add({0: ([0], [0, 2, 1, 0, 2, 3, 0, 0, 2]), 1: ([1], [0, 2]), 2: ([0, 0], [0, 2])})
    expert_ED, cu_expert = cache.pack([0, 1, 2])
    assert expert_ED.tolist() == [[0, 2, 1], [0, 3, 1], [0, 2, 2]]
    assert cu_expert.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize("batch_tokens", [ALONE, 100, 1 << 18])
def test_batches_are_bounded_and_change_nothing(batch_tokens: int, tmp_path: Path) -> None:
    """Examples that others are copies of are computed once."""
    known = corpus(60)
    examples = {i: known[i // 2] for i in reversed(range(120))}
    trunk, done, files, totals = RandomTrunk(), [0], [0], set()
    cache = open_cache(trunk, tmp_path, batch_tokens=batch_tokens)

    def note(computed: int, total: int) -> None:
        done.append(computed)
        totals.add(total)
        files.append(len(shards(tmp_path)))

    assert cache.add(examples, note) == trunk.calls == 60
    assert (done[-1], totals) == (60, {60})
    assert files == list(range(len(files))), "each batch is on disk before the next begins"
    tokens = [len(prompt) + len(expert) for prompt, expert in reversed(known.values())]
    for first, last in pairwise(done):
        assert last - first == 1 or sum(tokens[first:last]) <= batch_tokens
        assert last == 60 or sum(tokens[first : last + 1]) > batch_tokens, "one more would have gone in"
    for again in (cache, open_cache(RandomTrunk(), tmp_path)):
        assert again.add(examples) == 0
        assert same(again.pack(range(0, 120, 2)), fresh(known))
        assert same(again.pack(range(1, 120, 2)), fresh(known))


def test_one_changed_in_a_hundred_embeds_exactly_those(tmp_path: Path) -> None:
    before = corpus(300)
    open_cache(RandomTrunk(), tmp_path, batch_tokens=500).add(before)
    changed = {i: corpus(1, i, edition=1)[i] for i in (299, 4, 170)}
    after = {**before, **changed}
    trunk = RandomTrunk()
    cache = open_cache(trunk, tmp_path, batch_tokens=500)
    assert cache.add(after) == trunk.calls == 3
    assert sorted(trunk.prompts) == sorted(prompt for prompt, _ in changed.values())
    assert same(cache.pack(list(after)), fresh(after))
    # The states of before are still there for those who ask.
    assert cache.add(before) == 0
    assert same(cache.pack(list(before)), fresh(before))


def test_what_was_computed_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Failing(RandomTrunk):
        def sentence_states(self, prompts: Ids, responses: Ids, cu_sents: list[Tensor]) -> Tensor:
            if self.calls >= 30:
                raise RuntimeError("killed")
            return super().sentence_states(prompts, responses, cu_sents)

    examples = corpus(50)
    for directory in (tmp_path, None):
        trunk, again = Failing(), RandomTrunk()
        cache = open_cache(trunk, directory, batch_tokens=120)
        with pytest.raises(RuntimeError, match="killed"):
            cache.add(examples)
        assert 30 <= trunk.calls < 50
        if directory is not None:
            cache = open_cache(again, directory)
        cache.trunk = again
        assert cache.add(examples) == again.calls == 50 - trunk.calls
        assert same(cache.pack(list(examples)), fresh(examples))


def test_a_write_that_fails_or_is_killed_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        open_cache(CountingTrunk(), tmp_path).add(EXAMPLES)
    assert list(tmp_path.iterdir()) == []
    # Who is killed does not clear up.
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(OSError, match="No space left"):
        open_cache(CountingTrunk(), tmp_path).add(EXAMPLES)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    assert [open_cache(CountingTrunk(), tmp_path).add(EXAMPLES) for _ in range(2)] == [3, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_rounds_once(dtype: str, tmp_path: Path) -> None:
    examples = corpus(40)
    exact_ED, cu_expert = fresh(examples)
    rounded_ED = exact_ED.to(getattr(torch, dtype)).float()
    assert not torch.equal(rounded_ED, exact_ED)
    for computed in (40, 0):
        cache = open_cache(RandomTrunk(), tmp_path, dtype=dtype)
        assert cache.add(examples) == computed
        assert same(cache.pack(list(examples)), (rounded_ED, cu_expert))
    # In one directory with full precision, neither takes the other's states.
    full = open_cache(RandomTrunk(), tmp_path)
    assert full.add(examples) == 40
    assert same(full.pack(list(examples)), (exact_ED, cu_expert))
    assert len({load_file(path)["states"].dtype for path in shards(tmp_path)}) == 2


def test_states_beyond_the_range_of_a_dtype_are_refused() -> None:
    trunk = CountingTrunk()
    trunk.sentence_states = lambda *_: torch.full((5, HIDDEN), 3e5)
    with pytest.raises(ValueError, match="^dtype: expected one that holds states up to 3e\\+05, got torch.float16"):
        open_cache(trunk, dtype="float16").add(EXAMPLES)
    for dtype in ("bfloat16", "float32"):
        assert open_cache(trunk, dtype=dtype).add(EXAMPLES) == 3


def test_keys_are_compared_to_their_last_byte() -> None:
    """Also those that end in zero bytes, or differ only there; the first place of a key counts, and keeps its entry."""
    rows = np.zeros((4, 32), np.uint8)
    rows[1, 31], rows[2, 0], rows[3, [0, 31]] = 1, 1, 255
    keys = rows.view("S32").reshape(-1)
    index = _Index()
    assert index.find(keys).tolist() == [-1] * 4
    for places, rest in (([2, 0], []), ([3, 2], [3]), ([1], [1, 3])):
        index.extend(keys[places], np.array([[place, len(rest), 9] for place in places]))
        found = index.find(keys)
        assert (found[0], found[2]) == (1, 0)
    assert index.place_N3[found].tolist() == [[0, 0, 9], [1, 2, 9], [2, 0, 9], [3, 1, 9]]


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.multiprocess
def test_two_processes_add_to_one_directory(tmp_path: Path) -> None:
    """Both compute shards of one name at once, then some of the same experts in shards that differ."""
    processes = [start("add", tmp_path, rank) for rank in (0, 1)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
    outputs = [process.communicate("go\n", timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == ["100 100 True\n"] * 2, "each computes all of its own, as it does not see the other's"
    held = [bytes(key) for path in shards(tmp_path) for key in load_file(path)["keys"].tolist()]
    assert len(set(held)) == 100 + 150
    assert len(held) == 100 + 200
    cache = open_cache(RandomTrunk(), tmp_path)
    assert cache.add(corpus(250)) == 0
    assert same(cache.pack(range(250)), fresh(corpus(250)))


def test_opening_does_not_read_states(tmp_path: Path) -> None:
    """In a process of its own, whose memory nobody else moves. (What adding leaves is up to the allocator.)"""
    size, _, opened, read = map(float, start("open", tmp_path).communicate(timeout=240)[0].split())
    assert size > 90
    assert opened < 0.3 * size
    assert read > 0.9 * size, "the measure has to see states that were read"


def add_beside_others(directory: Path, rank: int) -> None:
    cache = open_cache(RandomTrunk(), directory, batch_tokens=ALONE)
    print("open", flush=True)
    sys.stdin.readline()
    counts = [cache.add(corpus(100))]
    cache.batch_tokens = 70 + 30 * rank
    own = corpus(100, 100 + 50 * rank)
    counts.append(cache.add(own))
    print(*counts, same(cache.pack(list(own)), fresh(own)))


def measure_opening(directory: Path) -> None:
    """Prints MB of states on disk, MB that adding and opening leave in memory, and MB that reading all of them does."""
    hidden, rows = 4096, 6000
    examples = {i: ([i], [0, 2, 0, 2, 0, 3]) for i in range(rows // 3)}
    rss = [psutil.Process().memory_info().rss]
    caches = []
    for computed in (rows // 3, 0):
        caches.append(open_cache(CountingTrunk(hidden_size=hidden), directory))
        assert caches[-1].add(examples) == computed
        rss.append(psutil.Process().memory_info().rss)
    assert sum(float(caches[1].pack([i])[0].sum()) for i in examples) == sum(2 + 2 + 2 + 3 for _ in examples)
    rss.append(psutil.Process().memory_info().rss)
    print(4 * hidden * rows / 1e6, *((after - before) / 1e6 for before, after in pairwise(rss)))


if __name__ == "__main__":
    work = {"add": add_beside_others, "open": measure_opening}[sys.argv[1]]
    work(Path(sys.argv[2]), *map(int, sys.argv[3:]))
