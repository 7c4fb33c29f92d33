"""Prompts of mini-IF and their division into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Final

from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import (
    CONSTRAINTS,
    Bullets,
    Constraint,
    EndPhrase,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    StartPhrase,
    WordRange,
    to_column,
)
from aapa.engine.tasks.mini_if.draws import pick, pick_some
from aapa.engine.tasks.mini_if.experts import sample_experts
from aapa.engine.tasks.mini_if.grammar import MAX_WORDS, TOPIC_NAMES, Style, compose, sample_style, word_count

DEFAULT_SIZES: Final = {"train": 6000, "dev": 1024, "test": 1024, "held_out": 512}
HELD_OUT_PAIRS: Final[tuple[frozenset[type[Constraint]], ...]] = (
    frozenset((KeywordCount, WordRange)),
    frozenset((NoCommas, EndPhrase)),
    frozenset((Bullets, StartPhrase)),
)
# How many constraints to state: one, two or three in 15 %, 45 % and 40 % of the draws.
_NUMBERS: Final = (1,) * 3 + (2,) * 9 + (3,) * 8
_RANGE_WIDTH: Final = 5
# Draws in a row without a new prompt after which a split counts as exhausted.
_PATIENCE: Final = 20_000


def is_held_out(constraints: Sequence[Constraint]) -> bool:
    """Say whether the constraints contain a pair of types that training never shows together."""
    kinds = {type(constraint) for constraint in constraints}
    return any(pair <= kinds for pair in HELD_OUT_PAIRS)


def format_prompt(topic: str, constraints: Sequence[Constraint]) -> str:
    """State topic and constraints in one line, followed by an empty one."""
    return f"About {topic}: {'; '.join(c.instruction() for c in constraints)}.\n\n"


def split_of(prompt: str, constraints: Sequence[Constraint]) -> str:
    """Return the only split in which a prompt may appear.

    A hash of the prompt decides between train, dev and test, in the proportions of the default sizes. So
    splits are disjoint whatever their sizes and seeds, and equally distributed: were they drawn one after the
    other, the first would use up the prompts that come up often and leave the rare ones to the last.
    """
    if is_held_out(constraints):
        return "held_out"
    splits = ("train", "dev", "test")
    digest = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])
    point = digest % sum(DEFAULT_SIZES[split] for split in splits)
    for split in splits:
        if point < DEFAULT_SIZES[split]:
            return split
        point -= DEFAULT_SIZES[split]
    raise AssertionError("the point lies below the sum of the sizes")


def _observations(count: int, style: Style) -> tuple[list[Constraint], list[Constraint]]:
    """Return what is true of a text of `count` words as (constraints to state, constraints one may state)."""
    low = min(count - count % _RANGE_WIDTH, MAX_WORDS - _RANGE_WIDTH)
    must: list[Constraint] = []
    may: list[Constraint] = [WordRange(low, low + _RANGE_WIDTH)]
    if style.lower:
        must.append(LowerCase())
    if style.bullets:
        must.append(Bullets(style.sentence_count))
    else:
        # A number of bullets is already a number of sentences.
        may.append(SentenceCount(style.sentence_count))
    if not style.commas:
        may.append(NoCommas())
    if style.start is not None:
        may.append(StartPhrase(style.start))
    if style.end is not None:
        may.append(EndPhrase(style.end))
    if style.keyword is not None:
        may.append(KeywordCount(style.keyword, style.keyword_count))
    return must, may


def sample_prompt(rng: Random) -> tuple[str, tuple[Constraint, ...]]:
    """Draw a topic and one to three constraints that hold together for at least one text of the grammar."""
    order = list(CONSTRAINTS.values())
    while True:
        topic = pick(rng, TOPIC_NAMES)
        style = sample_style(rng)
        sentences = compose(topic, style, rng)
        if sentences is None:
            continue
        must, may = _observations(word_count(sentences), style)
        number = min(pick(rng, _NUMBERS), len(must) + len(may))
        if len(must) <= number:
            chosen = must + pick_some(rng, may, number - len(must))
            return topic, tuple(sorted(chosen, key=lambda constraint: order.index(type(constraint))))


def sample_split(split: str, size: int, seed: int) -> list[Example]:
    """Draw `size` examples with different prompts; the first n do not depend on `size` or on other splits.

    Raises:
        UserError: the split has no `size` different prompts.
    """
    rng = Random(f"mini-if/{seed}/{split}")
    examples: list[Example] = []
    seen: set[str] = set()
    misses = 0
    while len(examples) < size:
        topic, constraints = sample_prompt(rng)
        prompt = format_prompt(topic, constraints)
        misses += 1
        if misses > _PATIENCE:
            raise UserError(f"{split}_size: expected at most about {len(examples)} (all its prompts), got {size}")
        if prompt in seen or split_of(prompt, constraints) != split:
            continue
        seen.add(prompt)
        experts = sample_experts(topic, constraints, rng)
        if experts is None:
            continue
        misses = 0
        columns = {"topic": topic, "constraints": [to_column(constraint) for constraint in constraints]}
        examples.append(Example(id=len(examples), prompt=prompt, experts=experts, columns=columns))
    return examples
