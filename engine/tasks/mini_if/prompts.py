"""Prompts of mini-IF and their division into splits."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS, Constraint, to_column
from aapa.engine.tasks.mini_if.draws import below, pick, pick_some
from aapa.engine.tasks.mini_if.experts import sample_experts
from aapa.engine.tasks.mini_if.form import Bullets, Paragraphs, Postscript, Quotation, Sections, Title
from aapa.engine.tasks.mini_if.grammar import MAX_WORDS, Style, write
from aapa.engine.tasks.mini_if.lexicon import lexicon_of
from aapa.engine.tasks.mini_if.text import longest_sentence, words
from aapa.engine.tasks.mini_if.variants import DEFAULT, Variant
from aapa.engine.tasks.mini_if.wording import (
    EndPhrase,
    ForbiddenWord,
    KeywordAtLeast,
    KeywordCount,
    LowerCase,
    NoCommas,
    SentenceCount,
    ShortSentences,
    StartPhrase,
    WordRange,
)
from aapa.engine.tasks.splits import by_hash

DEFAULT_SIZES: Final = {"train": 6000, "dev": 1024, "test": 1024, "held_out": 512, "held_out_types": 512}
_RANGE_WIDTH: Final = 5
# Limits of sentence length that prompts state: opening and closing need six words now and then.
_SHORT: Final = (6, 7)
# Draws in a row without a new prompt after which a split counts as exhausted.
_PATIENCE: Final = 20_000


def format_prompt(topic: str, constraints: Sequence[Constraint]) -> str:
    """State topic and constraints in one line, followed by an empty one."""
    return f"About {topic}: {'; '.join(c.instruction() for c in constraints)}.\n\n"


def split_of(prompt: str, constraints: Sequence[Constraint], variant: Variant = DEFAULT) -> str:
    """Return the only split in which a prompt may appear.

    A hash of the prompt decides between train, dev and test, in the proportions of the default sizes. So
    splits are disjoint whatever their sizes and seeds, and equally distributed: were they drawn one after the
    other, the first would use up the prompts that come up often and leave the rare ones to the last. The
    difficulties share the hash: what one trains on, no other evaluates on.
    """
    if variant.has_held_out_type(constraints):
        return "held_out_types"
    if variant.is_held_out(constraints):
        return "held_out"
    return by_hash(prompt, {split: DEFAULT_SIZES[split] for split in ("train", "dev", "test")})


def _observations(text: str, style: Style) -> tuple[list[Constraint], list[Constraint]]:
    """Return what is true of a text in `style` as (constraints to state, constraints one may state)."""
    count, layout = len(words(text)), style.layout
    low = min(count - count % _RANGE_WIDTH, MAX_WORDS - _RANGE_WIDTH)
    must: list[Constraint] = []
    may: list[Constraint] = [WordRange(low, low + _RANGE_WIDTH)]
    if style.lower:
        must.append(LowerCase())
    if style.bullets:
        must.append(Bullets(style.sentence_count))
    elif not layout.headed:
        # A number of bullets is already a number of sentences, and headings would have to be counted as such.
        may.append(SentenceCount(style.sentence_count))
    if not style.commas:
        may.append(NoCommas())
    if style.start is not None and layout.starts_with_text:
        may.append(StartPhrase(style.start))
    if style.end is not None and layout.ends_with_text:
        may.append(EndPhrase(style.end))
    if style.keyword is not None:
        may.append(KeywordCount(style.keyword, style.keyword_count))
    return must + _layout_constraints(style), may


def _layout_constraints(style: Style) -> list[Constraint]:
    layout = style.layout
    constraints: list[Constraint] = []
    if layout.separation == "sections":
        constraints.append(Sections(layout.parts))
    if layout.separation == "paragraphs":
        constraints.append(Paragraphs(layout.parts))
    if layout.title:
        constraints.append(Title())
    if layout.postscript:
        constraints.append(Postscript())
    if layout.quoted:
        constraints.append(Quotation())
    return constraints


def _more_observations(text: str, topic: str, style: Style, rng: Random) -> list[Constraint]:
    """Return what else one may state of a text where prompts are not easy."""
    domain, used = lexicon_of(topic).topics[topic], {word.lower() for word in words(text)}
    free = [word for word in (*domain.nouns, *domain.adjectives) if word not in used]
    # There is always a word to forbid: in every other prompt it would crowd out the rest.
    may: list[Constraint] = [ForbiddenWord(pick(rng, free))] if free and rng.random() < 0.5 else []
    longest = longest_sentence(text)
    may += [ShortSentences(limit) for limit in _SHORT if longest <= limit][:1]
    if style.keyword is not None:
        may.append(KeywordAtLeast(style.keyword, 1 + below(rng, style.keyword_count)))
    return may


def sample_prompt(rng: Random, variant: Variant = DEFAULT) -> tuple[str, tuple[Constraint, ...]]:
    """Draw a topic and some constraints that hold together for at least one text of the grammar."""
    order, difficulty = list(CONSTRAINTS.values()), variant.difficulty
    while True:
        topic = pick(rng, variant.lexicon.topic_names)
        style = variant.sample_style(rng)
        text = write(topic, style, rng)
        if text is None:
            continue
        must, may = _observations(text, style)
        if difficulty.layouts:
            may += _more_observations(text, topic, style, rng)
        number = min(pick(rng, difficulty.numbers), len(must) + len(may))
        if not min(difficulty.numbers) <= number >= len(must):
            continue
        chosen = must + pick_some(rng, may, number - len(must))
        # Exactly two times and at least once, for the same word, is one constraint too many.
        if not {KeywordCount, KeywordAtLeast} <= {type(constraint) for constraint in chosen}:
            return topic, tuple(sorted(chosen, key=lambda constraint: order.index(type(constraint))))


def sample_split(split: str, size: int, seed: int, variant: Variant = DEFAULT) -> list[Example]:
    """Draw `size` examples with different prompts; the first n do not depend on `size` or on other splits.

    Raises:
        UserError: the split has no `size` different prompts.
    """
    rng = variant.stream(f"{seed}/{split}")
    examples: list[Example] = []
    seen: set[str] = set()
    misses = 0
    while len(examples) < size:
        topic, constraints = sample_prompt(rng, variant)
        prompt = format_prompt(topic, constraints)
        misses += 1
        if misses > _PATIENCE:
            raise UserError(f"{split}_size: expected at most about {len(examples)} (all its prompts), got {size}")
        if prompt in seen or split_of(prompt, constraints, variant) != split:
            continue
        seen.add(prompt)
        experts = sample_experts(topic, constraints, rng)
        if experts is None:
            continue
        misses = 0
        columns = {"topic": topic, "constraints": [to_column(constraint) for constraint in constraints]}
        examples.append(Example(id=len(examples), prompt=prompt, experts=experts, columns=columns))
    return examples
