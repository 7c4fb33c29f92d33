"""The cache of expert sentence states at the size of a large corpus: bytes, opening, packing, refreshing.

The experts are synthetic and a trunk that only counts gives their states, so what is measured is the cache. Opening is
timed in processes of their own, with the files in the page cache ("warm") and dropped from it before ("cold"), and so
is the memory that it takes. Run it from the repository's root:
`python -m benchmarks.bench_expert_cache [--sentences N] [--output FILE]`.

Shape legend: S sentences, D hidden size.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import ExpertCache, Origin
from aapa.discriminator.base import table_hash
from aapa.discriminator.expert_cache import DTYPES
from aapa.sentences import build_sentence_table
from benchmarks.harness import commit, device_name, percentile, versions

SENTENCES, WORDS, PROMPT = 5, 19, 30
PROMPTS_PER_STEP = 256
# The disk keeps this much free beside the cache.
RESERVE = 2 << 30
VOCABULARY = {" aa": 0, " bb": 1, ".": 2, "<eos>": 3}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        directory: of the cache.
        experts: how many, of five sentences of twenty tokens each, to prompts of thirty tokens.
        hidden: D.
        dtype: of the states on disk.
        steps: packs that are timed.
    """

    directory: Path
    experts: int
    hidden: int
    dtype: str
    steps: int


class Corpus(Mapping[int, tuple[list[int], list[int]]]):
    """Experts made when asked for; every hundredth is another one in the changed corpus."""

    expert: ClassVar = [*[0, 1] * (WORDS // 2), 0, 2] * SENTENCES

    def __init__(self, size: int, changed: bool = False) -> None:
        self.size, self.changed = size, changed

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __getitem__(self, i: int) -> tuple[list[int], list[int]]:
        return [i, int(self.changed and i % 100 == 0), *[1] * (PROMPT - 2)], self.expert


class CountingTrunk:
    """States that are products of a number of the sentence and one of the feature."""

    hash = "counting"

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size, self.embedded = hidden_size, 0
        self.feature_D = torch.rand(hidden_size, generator=torch.Generator().manual_seed(0))

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        self.embedded += len(responses)
        assert all(len(cu) == SENTENCES + 1 for cu in cu_sents)
        return self.states(prompts)

    def states(self, prompts: list[list[int]]) -> Tensor:
        number = torch.tensor([[prompt[0] % 9973, prompt[1]] for prompt in prompts]).repeat_interleave(SENTENCES, 0)
        number_S = number[:, 0] + 9973 * number[:, 1] + torch.arange(len(number)) % SENTENCES
        return number_S.float()[:, None] * self.feature_D


def open_cache(setting: Setting, verify: bool = True) -> tuple[ExpertCache, CountingTrunk]:
    backend = Tokenizer(models.WordLevel(VOCABULARY, " aa"))
    table = build_sentence_table(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))
    trunk = CountingTrunk(setting.hidden)
    origin = Origin(trunk.hash, -1, table_hash(table))
    dtype: Any = setting.dtype
    return ExpertCache(trunk, origin, table, directory=setting.directory, dtype=dtype, verify=verify), trunk


def build(setting: Setting) -> dict[str, float]:
    cache, trunk = open_cache(setting)
    start = time.perf_counter()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} experts", end="", file=sys.stderr, flush=True)

    cache.add(Corpus(setting.experts), show)
    seconds = time.perf_counter() - start
    assert trunk.embedded == setting.experts
    files = list(setting.directory.iterdir())
    size = sum(path.stat().st_size for path in files)
    return {
        "build_s": seconds,
        "shards": len(files),
        "gb": size / 1e9,
        "bytes_per_sentence": size / (SENTENCES * setting.experts),
    }


def drop_pages(directory: Path) -> None:
    """Asks the system to drop the files from its page cache, so that the next read comes from the disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opening(setting: Setting, verify: bool) -> dict[str, float]:
    # What opening imports and builds on its first call is no part of it.
    open_cache(replace(setting, directory=setting.directory / "none"))
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    cache, _ = open_cache(setting, verify)
    seconds = time.perf_counter() - start
    grown = psutil.Process().memory_info().rss - before
    del cache
    return {"s": seconds, "rss_mb": grown / 1e6}


def packing(setting: Setting) -> dict[str, float]:
    """Sentences per second of random steps, cold and warm, and the time to find every expert in the cache."""
    cache, trunk = open_cache(setting, verify=False)
    corpus = Corpus(setting.experts)
    start = time.perf_counter()
    assert cache.add(corpus) == trunk.embedded == 0
    found = {"find_all_s": time.perf_counter() - start}
    rng = random.Random(0)
    steps = [[rng.randrange(setting.experts) for _ in range(PROMPTS_PER_STEP)] for _ in range(setting.steps)]
    for temperature in ("cold", "warm"):
        times = []
        for ids in steps:
            start = time.perf_counter()
            expert_ED, _ = cache.pack(ids)
            times.append(time.perf_counter() - start)
        expected = trunk.states([corpus[i][0] for i in steps[-1]]).to(DTYPES[setting.dtype]).float()
        assert torch.equal(expert_ED, expected), "packed states have to be the trunk's"
        sentences = PROMPTS_PER_STEP * SENTENCES
        found[f"pack_{temperature}_sentences_s"] = sentences / statistics.median(times)
        for share in (20, 80):
            found[f"pack_{temperature}_p{share}_ms"] = 1e3 * percentile(times, share / 100)
    return found


def refreshing(setting: Setting) -> dict[str, float]:
    """Opening, verifying and adding a corpus of which one expert in a hundred is new to the cache."""
    start = time.perf_counter()
    cache, trunk = open_cache(setting)
    opened = time.perf_counter()
    computed = cache.add(Corpus(setting.experts, changed=True))
    assert computed == trunk.embedded == len(range(0, setting.experts, 100)), "only what changed is embedded"
    return {
        "refresh_s": time.perf_counter() - start,
        "refresh_add_s": time.perf_counter() - opened,
        "refresh_embedded": trunk.embedded,
    }


def alone(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Runs in a process of its own, whose memory and maps begin empty."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure(setting: Setting) -> dict[str, Any]:
    figures = alone(build, setting)
    for temperature in ("cold", "warm"):
        for verify in (True, False):
            if temperature == "cold":
                drop_pages(setting.directory)
            name = f"open_{temperature}_{'verified' if verify else 'unverified'}"
            opened = alone(opening, setting, verify)
            figures |= {f"{name}_s": opened["s"], f"{name}_rss_mb": opened["rss_mb"]}
    drop_pages(setting.directory)
    figures |= alone(packing, setting)
    figures |= alone(refreshing, setting)
    return {
        "op": "expert_cache",
        "backend": "aapa",
        "shape": {"sentences": SENTENCES * setting.experts, "experts": setting.experts, "hidden": setting.hidden},
        "dtype": setting.dtype,
        **figures,
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "commit": commit(),
    }


def affordable(sentences: int, hidden: int, dtypes: Sequence[str], free: int) -> int:
    """As many sentences as asked for, or as the free bytes of the disk allow."""
    # A fiftieth for keys and what the refresh adds.
    per_sentence = max(DTYPES[dtype].itemsize for dtype in dtypes) * hidden * 1.02
    return min(sentences, max(0, int((free - RESERVE) / per_sentence)) // SENTENCES * SENTENCES)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=200, help="packs that are timed")
    parser.add_argument("--directory", type=Path, help="where a temporary folder is made (default: the system's)")
    parser.add_argument("--output", type=Path, help="file to which JSON lines are appended")
    parser.add_argument("--smoke", action="store_true", help="a thousand sentences and few steps: does it run?")
    parsed = parser.parse_args(arguments)
    asked, steps = (1000, 3) if parsed.smoke else (parsed.sentences, parsed.steps)
    with tempfile.TemporaryDirectory(dir=parsed.directory) as folder:
        free = shutil.disk_usage(folder).free
        sentences = affordable(asked, parsed.hidden, parsed.dtypes, free)
        if sentences < asked:
            print(f"{free / 1e9:.1f} GB are free: {sentences:,} sentences instead of {asked:,}", file=sys.stderr)
        if sentences < 100 * SENTENCES:
            parser.error(f"--sentences: expected at least {100 * SENTENCES} that fit on the disk, got {sentences}")
        for dtype in parsed.dtypes:
            setting = Setting(Path(folder) / dtype, sentences // SENTENCES, parsed.hidden, dtype, steps)
            row = measure(setting)
            shutil.rmtree(setting.directory)
            for name, value in row.items():
                print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value}")
            print(flush=True)
            if parsed.output is not None:
                with parsed.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
