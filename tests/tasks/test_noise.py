"""Wrong experts: as many as asked for, wrong in the way asked for, in training only, and never without asking."""

from __future__ import annotations

import math
from functools import cache

import pytest
from constraint_oracles import ORACLES

from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import from_column
from aapa.engine.tasks.mini_if.language import in_language
from aapa.engine.tasks.mini_if.lexicon import LEXICON_OF
from aapa.engine.tasks.mini_if.task import MiniIF

SIZES = {"train_size": 300, "dev_size": 20, "test_size": 20, "held_out_size": 20, "held_out_types_size": 20}
VARIANTS = [("plain", "easy"), ("plain", "hard"), ("formal", "medium")]
SHARE = 0.4


@cache
def build(style: str, difficulty: str, share: float, kind: str, seed: int = 0) -> MiniIF:
    return MiniIF(
        style=style,
        difficulty=difficulty,
        expert_noise=share,
        noise_kind=kind,
        seed=seed,
        corpus_size=100,
        **SIZES,
    )


def noisy(examples: list[Example], kind: str) -> list[Example]:
    return [example for example in examples if example.columns["noise"] == kind]


def met(example: Example, text: str) -> list[bool]:
    constraints = [from_column(column) for column in example.columns["constraints"]]
    return [ORACLES[constraint.kind](constraint, text) for constraint in constraints]


def languages(text: str, task: MiniIF) -> list[str]:
    return [topic for topic in LEXICON_OF if in_language(text, topic, task.variant.difficulty)]


def test_no_noise_changes_nothing(task: MiniIF) -> None:
    for kind in ("constraint", "mixed"):
        assert build("plain", "easy", 0, kind).examples("train") == task.examples("train")[:300]


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
@pytest.mark.parametrize("kind", ["constraint", "topic", "style", "mixed"])
def test_only_the_experts_of_noisy_training_examples_change(style: str, difficulty: str, kind: str) -> None:
    clean, task = build(style, difficulty, 0, "mixed"), build(style, difficulty, SHARE, kind)
    changed = 0
    for before, after in zip(clean.examples("train"), task.examples("train"), strict=True):
        assert (before.id, before.prompt) == (after.id, after.prompt)
        assert after.columns == {**before.columns, "noise": after.columns["noise"]}
        assert (before.experts == after.experts) is (after.columns["noise"] == "none")
        assert len(set(after.experts)) == 2
        changed += before.experts != after.experts
    assert abs(changed - SHARE * 300) < 4 * math.sqrt(300 * SHARE * (1 - SHARE))
    for split in clean.sizes:
        if split != "train":
            assert task.examples(split) == clean.examples(split)
    assert task.corpus() == clean.corpus()


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
def test_a_violated_constraint_is_all_that_is_wrong(style: str, difficulty: str) -> None:
    task = build(style, difficulty, SHARE, "constraint")
    violated = set()
    for example in noisy(task.examples("train"), "constraint"):
        verdicts = [met(example, text) for text in example.experts]
        assert verdicts[0] == verdicts[1]
        assert verdicts[0].count(False) == 1
        violated.add(example.columns["constraints"][verdicts[0].index(False)]["kind"])
        assert all(languages(text, task) == [example.columns["topic"]] for text in example.experts)
    # No one type is always the victim.
    assert len(violated) > 5


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
def test_another_topic_is_all_that_is_wrong(style: str, difficulty: str) -> None:
    task = build(style, difficulty, SHARE, "topic")
    for example in noisy(task.examples("train"), "topic"):
        others = [languages(text, task) for text in example.experts]
        assert others[0] == others[1]
        assert len(others[0]) == 1
        assert others[0] != [example.columns["topic"]]
        assert others[0][0] in task.variant.lexicon.topics
        assert all(all(met(example, text)) for text in example.experts)


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
def test_the_style_is_all_that_is_wrong(style: str, difficulty: str) -> None:
    task = build(style, difficulty, SHARE, "style")
    found = noisy(task.examples("train"), "style")
    # A few prompts can't be met in the other style.
    assert len(found) > 0.9 * SHARE * 300
    for example in found:
        for text in example.experts:
            assert languages(text, task) == []
            assert all(met(example, text))
            assert example.columns["topic"] in text.lower()


def test_mixed_is_all_kinds() -> None:
    examples = build("plain", "easy", SHARE, "mixed").examples("train")
    counts = [len(noisy(examples, kind)) for kind in ("constraint", "topic", "style")]
    assert sum(counts) + len(noisy(examples, "none")) == 300
    assert min(counts) > 20


def test_more_noise_keeps_what_is_noisy_and_every_kind_hits_the_same() -> None:
    few, many = (build("plain", "easy", share, "mixed").examples("train") for share in (0.1, SHARE))
    for one, other in zip(few, many, strict=True):
        assert one.columns["noise"] == "none" or one == other
    assert len(noisy(few, "none")) > len(noisy(many, "none"))
    kinds = [build("plain", "easy", SHARE, kind).examples("train") for kind in ("constraint", "topic")]
    assert [e.id for e in noisy(kinds[0], "none")] == [e.id for e in noisy(kinds[1], "none")]


def test_noise_follows_from_the_seed() -> None:
    again = MiniIF(expert_noise=SHARE, noise_kind="mixed", **SIZES)
    assert again.examples("train") == build("plain", "easy", SHARE, "mixed").examples("train")
    hit = [
        [e.columns["noise"] != "none" for e in build("plain", "easy", SHARE, "mixed", s).examples("train")]
        for s in (0, 1)
    ]
    assert hit[0] != hit[1]
