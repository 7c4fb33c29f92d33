"""Splits: right experts, disjoint prompts, equal distribution, held-out pairs, the same data every time."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import mean, stdev

import pytest

from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if import experts, prompts
from aapa.engine.tasks.mini_if.language import in_language
from aapa.engine.tasks.mini_if.lexicon import PLAIN
from aapa.engine.tasks.mini_if.rewards import proxy_reward, true_reward
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.mini_if.text import words
from aapa.engine.tasks.mini_if.variants import EASY

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train": 6000, "dev": 1024, "test": 1024, "held_out": 512}
SMALL = {"train_size": 60, "dev_size": 20, "test_size": 20, "held_out_size": 20, "corpus_size": 50}
HELD_OUT = [{"keyword_count", "word_range"}, {"no_commas", "end_phrase"}, {"bullets", "start_phrase"}]
# Changing this figure changes the data of every published run: only on purpose, and with a line in CHANGELOG.
FINGERPRINT = "c262c462b45eb5b111c9c91990348c02d62d371d4e79a2d80fc0c431b37b6f2e"
# The default task as it was before it had options for difficulty, style and noise (commit 35b9344).
PINNED = {
    "train": "ef28a22a9bc945d5646fd44cb6bbf92147bd06a0c187085671adaee9780aab37",
    "dev": "61398d38402bac70f7ecea20e65021e5a827052e47a02d3e23a32f94a794541f",
    "test": "775853031438b4fe918e4523feafb75273481fb568a1c1c67ac26b226110e548",
    "held_out": "675d0243f76841a1cf8d9b64af2295b97821203ed1baeff89f5ff67d2a7fdb04",
    "the corpus's first 1000": "c497dc47bd220f8daa17679f73106d0fa9b53731f8686841923e765cb527ffa3",
    "corpus": "942b69742f05f97366bdddec049d00bfa61da797eb71bdcd898093d064d387d3",
    "verdicts": "76607d6259f71f0a1af2aef994907e77262eb45d5a4d1f2cc6c295a5db279675",
}


def kinds(example: Example) -> set[str]:
    return {column["kind"] for column in example.columns["constraints"]}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def rows(examples: list[Example]) -> list[list[object]]:
    return [[e.id, e.prompt, e.experts, e.columns] for e in examples]


def fingerprint(task: MiniIF) -> str:
    return digest([rows([e for split in SIZES for e in task.examples(split)]), task.corpus()])


@pytest.mark.parametrize("split", SIZES)
def test_experts_are_right(task: MiniIF, split: str) -> None:
    examples = task.examples(split)
    assert len(examples) == SIZES[split]
    assert [example.id for example in examples] == list(range(len(examples)))
    for number in range(2):
        texts = [example.experts[number] for example in examples]
        columns = {
            "constraints": [example.columns["constraints"] for example in examples],
            "topic": [example.columns["topic"] for example in examples],
        }
        asked = [example.prompt for example in examples]
        assert true_reward(asked, texts, finished=[True] * len(texts), **columns) == [1.0] * len(texts)
        assert proxy_reward(asked, texts, finished=[True] * len(texts), **columns) == [1.0] * len(texts)
        assert all(in_language(text, topic) for text, topic in zip(texts, columns["topic"], strict=True))
        assert max(len(words(text)) for text in texts) <= 40
    assert all(len(example.experts) == len(set(example.experts)) == 2 for example in examples)


@pytest.mark.parametrize("split", SIZES)
def test_prompts_say_what_the_columns_say(task: MiniIF, split: str) -> None:
    for example in task.examples(split):
        constraints = [prompts_from(column) for column in example.columns["constraints"]]
        assert example.prompt == f"About {example.columns['topic']}: {'; '.join(constraints)}.\n\n"
        assert 1 <= len(constraints) == len(kinds(example)) <= 3
        assert not {"bullets", "sentence_count"} <= kinds(example)


def prompts_from(column: dict[str, object]) -> str:
    forms = {
        "word_range": "{low} to {high} words",
        "sentence_count": "{count} sentences",
        "lower_case": "lower case",
        "bullets": "{count} bullets",
        "no_commas": "no commas",
        "start_phrase": "start with {phrase}",
        "end_phrase": "end with {phrase}",
        "keyword_count": "use {keyword} {count} time" + ("s" if column.get("count") != 1 else ""),
    }
    return forms[str(column["kind"])].format(**column)


def test_prompts_are_unique_and_splits_disjoint(task: MiniIF) -> None:
    seen = {split: {example.prompt for example in task.examples(split)} for split in SIZES}
    assert {split: len(found) for split, found in seen.items()} == SIZES
    for one, other in itertools.combinations(SIZES, 2):
        assert not seen[one] & seen[other]


def test_splits_are_disjoint_across_seeds(task: MiniIF) -> None:
    trained = {example.prompt for example in task.examples("train")}
    other = MiniIF(seed=1, test_size=300, dev_size=300)
    for split in ("dev", "test"):
        found = {example.prompt for example in other.examples(split)}
        assert not trained & found
        # A different seed is different data, not a reordering of nothing.
        assert found != {example.prompt for example in task.examples(split)[:300]}


def test_held_out_pairs_are_held_out(task: MiniIF) -> None:
    for split in ("train", "dev", "test"):
        for example in task.examples(split):
            assert not any(pair <= kinds(example) for pair in HELD_OUT), example.prompt
    held_out = task.examples("held_out")
    assert all(any(pair <= kinds(example) for pair in HELD_OUT) for example in held_out)
    assert all(sum(pair <= kinds(example) for example in held_out) >= 20 for pair in HELD_OUT)
    # Every type occurs in training: only the combination is new.
    assert set().union(*map(kinds, task.examples("train"))) >= set().union(*HELD_OUT)


def has(kind: str) -> Callable[[Example], float]:
    return lambda example: kind in kinds(example)


FEATURES: dict[str, Callable[[Example], float]] = {
    **{f"has {kind}": has(kind) for kind in sorted(kind.kind for kind in EASY.types)},
    "one constraint": lambda e: len(kinds(e)) == 1,
    "three constraints": lambda e: len(kinds(e)) == 3,
    "words of the experts": lambda e: mean(len(words(text)) for text in e.experts),
    "letters of the prompt": lambda e: len(e.prompt),
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_splits_are_equally_distributed(task: MiniIF, split: str, feature: str) -> None:
    ours = [float(FEATURES[feature](example)) for example in task.examples(split)]
    theirs = [float(FEATURES[feature](example)) for example in task.examples("train")]
    error = math.sqrt(stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs))
    assert abs(mean(ours) - mean(theirs)) < 4 * error


def test_both_experts_follow_one_distribution(task: MiniIF) -> None:
    free = [e for e in task.examples("train") if not kinds(e) & {"start_phrase", "end_phrase", "keyword_count"}]
    features: dict[str, Callable[[str], float]] = {
        "words": lambda text: len(words(text)),
        "commas": lambda text: text.count(","),
        "sentences": lambda text: text.count("."),
        "phrase": lambda text: float(text.lower().endswith(("about it.", "is all.", "the day.", "me again."))),
        "keyword": lambda text: float("river" in text or "lamp" in text or "stone" in text),
    }
    for name, feature in features.items():
        differences = [feature(e.experts[0]) - feature(e.experts[1]) for e in free]
        assert abs(mean(differences)) < 4 * stdev(differences) / math.sqrt(len(free)), name
        assert stdev(differences) > 0, name


def test_the_second_expert_is_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["one", "one", "one", "two", "never"])
    monkeypatch.setattr(experts, "sample_expert", lambda *_, **__: next(drawn))
    assert experts.sample_experts("tea", [], Random(0)) == ("one", "two")
    monkeypatch.setattr(experts, "sample_expert", lambda *_, **__: "one")
    assert experts.sample_experts("tea", [], Random(0)) is None
    monkeypatch.setattr(experts, "sample_expert", lambda *_, **__: None)
    assert experts.sample_experts("tea", [], Random(0)) is None


def test_sizes_do_not_touch_other_splits(task: MiniIF) -> None:
    small = MiniIF(train_size=7, dev_size=50, test_size=31, held_out_size=9)
    for split, size in {"train": 7, "dev": 50, "test": 31, "held_out": 9}.items():
        assert small.examples(split) == task.examples(split)[:size]


def test_default_data_are_pinned(task: MiniIF) -> None:
    found = {split: digest(rows(task.examples(split))) for split in SIZES}
    found["the corpus's first 1000"] = digest(task.corpus()[:1000])
    found["corpus"] = digest(task.corpus())
    verdicts = []
    for split in SIZES:
        examples = task.examples(split)
        count = len(examples)
        for shift in (0, 7):
            texts = [
                examples[(i + shift) % count].experts[0]
                if i % 3
                else e.experts[1] + ("" if i % 2 else "\n" + e.experts[0])
                for i, e in enumerate(examples)
            ]
            verdicts.append(task.judge(examples, texts, [i % 5 != 0 for i in range(count)]))
    found["verdicts"] = digest(verdicts)
    assert found == PINNED


def test_data_never_change() -> None:
    assert fingerprint(MiniIF(**SMALL)) == FINGERPRINT
    assert fingerprint(MiniIF(seed=1, **SMALL)) != FINGERPRINT


def test_data_do_not_depend_on_process_or_order() -> None:
    program = (
        "import hashlib, json, random\n"
        "from aapa.engine.tasks.mini_if.task import MiniIF\n"
        "random.seed()\n"
        f"task = MiniIF(**{SMALL!r})\n"
        "for split in ('held_out', 'test'): task.examples(split)\n"
        f"examples = [e for split in {list(SIZES)!r} for e in task.examples(split)]\n"
        "rows = [[e.id, e.prompt, e.experts, e.columns] for e in examples]\n"
        "print(hashlib.sha256(json.dumps([rows, task.corpus()]).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == FINGERPRINT


def test_corpus(task: MiniIF) -> None:
    corpus = task.corpus()
    assert len(corpus) == 20_000
    in_grammar = 0
    for text in corpus:
        # A text of the grammar names its topic and no other, so that one is the only candidate.
        named = {word.lower() for word in words(text)} & PLAIN.topics.keys()
        in_grammar += len(named) == 1 and in_language(text, named.pop())
    assert abs(in_grammar / len(corpus) - 0.7) < 4 * math.sqrt(0.7 * 0.3 / len(corpus))


def test_corpus_holds_no_expert_of_an_evaluation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = MiniIF(**SMALL)
    copied = task.corpus()[3]
    example = task.examples("test")[0]
    leaky = dataclasses.replace(example, experts=(example.experts[0], copied))
    again = MiniIF(**SMALL)
    monkeypatch.setitem(again._examples, "test", [leaky])
    corpus = again.corpus()
    assert copied not in corpus
    assert len(corpus) == SMALL["corpus_size"]
    assert corpus[:3] == task.corpus()[:3]


def test_an_exhausted_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_PATIENCE", 30)
    with pytest.raises(ValueError, match=r"^dev_size: expected at most about \d+ .*, got 5000$"):
        MiniIF(dev_size=5000).examples("dev")


def test_returned_lists_are_the_callers_own(task: MiniIF) -> None:
    task.examples("dev").clear()
    task.corpus().clear()
    assert len(task.examples("dev")) == SIZES["dev"]
    assert len(task.corpus()) == 20_000


def test_topics_are_balanced(task: MiniIF) -> None:
    counts = Counter(example.columns["topic"] for example in task.examples("train"))
    assert len(counts) == 24
    assert min(counts.values()) > 6000 / 24 - 5 * math.sqrt(6000 / 24)
    assert max(counts.values()) < 6000 / 24 + 5 * math.sqrt(6000 / 24)
