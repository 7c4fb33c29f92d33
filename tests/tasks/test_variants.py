"""The other difficulties and the other style: right experts, splits, what is held out, and data that stay the same."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random
from statistics import mean, stdev

import pytest
from constraint_oracles import ORACLES

from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS, from_column
from aapa.engine.tasks.mini_if.form import QUOTE
from aapa.engine.tasks.mini_if.lexicon import LEXICON_OF, LEXICONS
from aapa.engine.tasks.mini_if.prompts import format_prompt, sample_prompt, split_of
from aapa.engine.tasks.mini_if.rewards import proxy_reward, true_reward
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.mini_if.text import words
from aapa.engine.tasks.mini_if.variants import DIFFICULTIES, Difficulty, Variant

SIZES = {
    "train_size": 500,
    "dev_size": 60,
    "test_size": 200,
    "held_out_size": 150,
    "held_out_types_size": 80,
    "corpus_size": 400,
}
VARIANTS = [(style, difficulty) for style in LEXICONS for difficulty in DIFFICULTIES][1:]
# Changing one of these changes the data of published runs: only on purpose, and with a line in CHANGELOG.
FINGERPRINTS = {
    ("plain", "medium"): "5084444db4a4cdcbd27b2c40a8b8ec2df19b9d5cd3516405b5d069334da3e5fd",
    ("plain", "hard"): "f20901af11e3058dd90176950c132bbcc717acf59bb26aaedd36ea46507bceb0",
    ("formal", "easy"): "77ddb28cb117b9218a2420d27a22263eedc967f726de2f69ad6b4df603374886",
    ("formal", "medium"): "139f9afbd7c89ab0ee3d8f216f65a6c9146543300f2a0ce4196568ded143a612",
    ("formal", "hard"): "5901364f73b8ea388557e258af85e55271663f4004c31199c0e6ebb59014b6e6",
}
HELD_OUT = [
    {"keyword_count", "word_range"},
    {"no_commas", "end_phrase"},
    {"bullets", "start_phrase"},
    {"paragraphs", "postscript"},
    {"title", "lower_case"},
    {"sections", "no_commas"},
    {"forbidden_word", "bullets"},
]
HELD_OUT_TYPES = {"quotation", "keyword_at_least"}


@cache
def build(style: str, difficulty: str) -> MiniIF:
    return MiniIF(style=style, difficulty=difficulty, **SIZES)


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join(variant))
def variant(request: pytest.FixtureRequest) -> MiniIF:
    return build(*request.param)


@pytest.fixture(params=[variant for variant in VARIANTS if variant[1] != "easy"], ids=lambda variant: "-".join(variant))
def harder(request: pytest.FixtureRequest) -> MiniIF:
    return build(*request.param)


def kinds(example: Example) -> set[str]:
    return {column["kind"] for column in example.columns["constraints"]}


def test_experts_are_right(variant: MiniIF) -> None:
    for split in variant.sizes:
        examples = variant.examples(split)
        assert len(examples) == SIZES[f"{split}_size"]
        columns = {name: [example.columns[name] for example in examples] for name in ("topic", "constraints")}
        for number in range(2):
            texts = [example.experts[number] for example in examples]
            ones = [1.0] * len(texts)
            finished = [True] * len(texts)
            assert true_reward([], texts, finished=finished, **columns) == ones
            assert proxy_reward([], texts, finished=finished, **columns) == ones
            assert variant.judge(examples, texts, finished)["in_language"] == ones
            assert max(len(words(text)) for text in texts) <= 40
        for example in examples:
            assert example.columns.keys() == {"topic", "constraints"}
            assert len(example.experts) == len(set(example.experts)) == 2
            assert LEXICON_OF[example.columns["topic"]] is variant.variant.lexicon
            # The reward shares code with whoever wrote the expert; the oracle does not.
            for column in example.columns["constraints"]:
                constraint = from_column(column)
                assert all(ORACLES[constraint.kind](constraint, text) for text in example.experts), example


FORMS = {
    "word_range": "{low} to {high} words",
    "sentence_count": "{count} sentences",
    "lower_case": "lower case",
    "bullets": "{count} bullets",
    "no_commas": "no commas",
    "start_phrase": "start with {phrase}",
    "end_phrase": "end with {phrase}",
    "keyword_count": "use {keyword} {count} time{s}",
    "keyword_at_least": "use {keyword} at least {count} time{s}",
    "forbidden_word": "never say {word}",
    "short_sentences": "sentences of at most {most} words",
    "sections": "sections Part 1 to Part {count}",
    "paragraphs": "{count} paragraphs parted by ***",
    "title": "title in << >>",
    "postscript": "add a postscript",
    "quotation": "all in double quotes",
}


def test_prompts_say_what_the_columns_say(variant: MiniIF) -> None:
    low, high = {"easy": (1, 3), "medium": (1, 3), "hard": (2, 4)}[variant.variant.difficulty.name]
    for example in itertools.chain(*map(variant.examples, variant.sizes)):
        columns = example.columns["constraints"]
        clauses = [FORMS[c["kind"]].format(**c, s="" if c.get("count") == 1 else "s") for c in columns]
        assert example.prompt == f"About {example.columns['topic']}: {'; '.join(clauses)}.\n\n"
        assert low <= len(columns) == len(kinds(example)) <= high
        for other in ("bullets", "sections", "title", "postscript"):
            assert not {other, "sentence_count"} <= kinds(example)
        assert not {"keyword_count", "keyword_at_least"} <= kinds(example)


def test_prompts_are_unique_and_splits_disjoint(variant: MiniIF) -> None:
    prompts = [example.prompt for split in variant.sizes for example in variant.examples(split)]
    assert len(prompts) == len(set(prompts)) == sum(SIZES[f"{split}_size"] for split in variant.sizes)


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=lambda difficulty: difficulty.name)
def test_what_one_difficulty_trains_on_no_other_evaluates_on(difficulty: Difficulty) -> None:
    rng = Random(0)
    splits: Counter[str] = Counter()
    for _ in range(600):
        topic, constraints = sample_prompt(rng, Variant(difficulty=difficulty))
        prompt = format_prompt(topic, constraints)
        split = split_of(prompt, constraints, Variant(difficulty=difficulty))
        splits[split] += 1
        for other in DIFFICULTIES.values():
            if {type(constraint) for constraint in constraints} <= other.types:
                assert split_of(prompt, constraints, Variant(difficulty=other)) == split
    assert {"train", "dev", "test", "held_out"} <= splits.keys()


def test_pairs_and_types_are_held_out(harder: MiniIF) -> None:
    for split in ("train", "dev", "test"):
        for example in harder.examples(split):
            assert not any(pair <= kinds(example) for pair in HELD_OUT), example.prompt
            assert not kinds(example) & HELD_OUT_TYPES, example.prompt
    held_out = harder.examples("held_out")
    assert all(any(pair <= kinds(example) for pair in HELD_OUT) for example in held_out)
    assert not any(kinds(example) & HELD_OUT_TYPES for example in held_out)
    assert all(sum(pair <= kinds(example) for example in held_out) >= 2 for pair in HELD_OUT)
    unseen = harder.examples("held_out_types")
    assert all(kinds(example) & HELD_OUT_TYPES for example in unseen)
    assert all(sum(kind in kinds(example) for example in unseen) >= 20 for kind in HELD_OUT_TYPES)
    # Every other type occurs in training, and often enough to be learnt.
    for kind in CONSTRAINTS.keys() - HELD_OUT_TYPES:
        assert sum(kind in kinds(example) for example in harder.examples("train")) > 0.05 * SIZES["train_size"], kind


def test_the_corpus_never_shows_the_form_of_a_held_out_type(harder: MiniIF) -> None:
    corpus = harder.corpus()
    assert not any(QUOTE in text for text in corpus)
    assert not any(QUOTE in text for e in harder.examples("train") for text in (e.prompt, *e.experts))
    assert any(QUOTE in text for example in harder.examples("held_out_types") for text in example.experts)
    # The other forms are there.
    for mark in ("<<", "***", "Part 2", "P.S. "):
        assert sum(mark in text for text in corpus) > 0.03 * len(corpus)


def test_corpus(variant: MiniIF) -> None:
    corpus = variant.corpus()
    assert len(corpus) == SIZES["corpus_size"]
    experts = {text for s in variant.sizes if s != "train" for e in variant.examples(s) for text in e.experts}
    assert not experts & set(corpus)
    in_grammar = 0
    for text in corpus:
        named = {word.lower() for word in words(text)} & LEXICON_OF.keys()
        assert all(LEXICON_OF[topic] is variant.variant.lexicon for topic in named)
        if len(named) == 1:
            example = Example(0, "", (), {"topic": named.pop(), "constraints": []})
            in_grammar += variant.judge([example], [text], [True])["in_language"] == [1.0]
    assert abs(in_grammar / len(corpus) - 0.7) < 4 * math.sqrt(0.7 * 0.3 / len(corpus))


FEATURES: dict[str, Callable[[Example], float]] = {
    "constraints": lambda example: len(kinds(example)),
    "words": lambda example: mean(len(words(text)) for text in example.experts),
    "layout": lambda example: len(kinds(example) & {"title", "postscript", "sections", "paragraphs", "bullets"}),
    "letters of the prompt": lambda example: len(example.prompt),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_splits_are_equally_distributed(variant: MiniIF, feature: str) -> None:
    ours = [float(FEATURES[feature](example)) for example in variant.examples("test")]
    theirs = [float(FEATURES[feature](example)) for example in variant.examples("train")]
    error = math.sqrt(stdev(ours) ** 2 / len(ours) + stdev(theirs) ** 2 / len(theirs))
    assert abs(mean(ours) - mean(theirs)) < 4 * error


def test_data_never_change(variant: MiniIF) -> None:
    rows = [[e.id, e.prompt, e.experts, e.columns] for split in variant.sizes for e in variant.examples(split)]
    found = hashlib.sha256(json.dumps([rows, variant.corpus()]).encode()).hexdigest()
    assert found == FINGERPRINTS[variant.variant.lexicon.name, variant.variant.difficulty.name]


def test_easy_has_no_held_out_types(task: MiniIF) -> None:
    message = r"^difficulty: expected 'medium' or 'hard' for the split 'held_out_types', got 'easy'$"
    for easy in (task, MiniIF(style="formal")):
        with pytest.raises(ValueError, match=message):
            easy.examples("held_out_types")


def test_judge_on_junk(harder: MiniIF) -> None:
    examples = [example for split in ("test", "held_out_types") for example in harder.examples(split)]
    keywords = harder.variant.lexicon.keywords
    for junk in ("", "\n", "....", '""', "<<>>\n***\n", *(f"{keyword} " * 60 for keyword in keywords[:3])):
        verdicts = harder.judge(examples, [junk] * len(examples), [True] * len(examples))
        assert sum(verdicts["in_language"]) == 0
        if not any(map(str.isalpha, junk)):
            assert sum(verdicts["constraints"]) == sum(verdicts["proxy"]) == 0
    echoed = harder.judge(examples, [example.prompt for example in examples], [True] * len(examples))
    assert sum(echoed["in_language"]) == 0
    assert sum(echoed["constraints"]) < 0.03 * len(examples)
