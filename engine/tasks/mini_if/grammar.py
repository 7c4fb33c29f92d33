"""The stochastic grammar in which mini-IF's experts write, and the other style that fills up the corpus.

An expert text is `[start phrase] opening middle{1,4} closing [end phrase]`. A sentence is one template with
its slots filled from the vocabulary of the topic's domain, so the sentences of a topic are finitely many:
they are enumerated once, and the writer and the parser (`language.py`) read the same enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from string import Formatter
from typing import Final, NamedTuple

from aapa.engine.tasks.mini_if.draws import below, pick, pick_some


@dataclass(frozen=True)
class Domain:
    """Topics that share a vocabulary."""

    topics: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]


def _domain(topics: str, adjectives: str, nouns: str, verbs: str) -> Domain:
    return Domain(*(tuple(column.split()) for column in (topics, adjectives, nouns, verbs)))


DOMAINS: Final[tuple[Domain, ...]] = (
    _domain("tea bread soup honey", "warm sweet fresh simple", "steam flavor comfort salt", "taste share serve"),
    _domain("rain wind snow moss", "gentle wild quiet cold", "water silence green light", "watch follow welcome"),
    _domain(
        "pottery sewing carving painting",
        "patient careful steady bright",
        "clay thread wood color",
        "learn practice enjoy",
    ),
    _domain(
        "london paris tokyo cairo",
        "busy old grand lively",
        "history traffic trade marble",
        "visit explore remember",
    ),
    _domain(
        "chess tennis rowing boxing",
        "clever tense quick proud",
        "trust skill sweat courage",
        "play try teach",
    ),
    _domain(
        "jazz opera blues samba",
        "bold smooth rich loud",
        "rhythm harmony passion sound",
        "hear study perform",
    ),
)
TOPICS: Final[Mapping[str, Domain]] = {topic: domain for domain in DOMAINS for topic in domain.topics}
TOPIC_NAMES: Final = tuple(TOPICS)
PEOPLE: Final = ("children", "old friends", "quiet people", "busy families")
TIMES: Final = ("every morning", "at night", "on long days", "after work")
MANNERS: Final = ("slowly", "with joy", "without fear")
KEYWORDS: Final = (
    "river",
    "lamp",
    "stone",
    "garden",
    "window",
    "bridge",
    "mirror",
    "candle",
    "ladder",
    "basket",
)
START_PHRASES: Final = ("listen closely", "here we go", "let me explain", "well then")
END_PHRASES: Final = ("think about it", "that is all", "enjoy the day", "ask me again")

OPENINGS: Final = (
    "{topic} can be {adjective} and {other_adjective}",
    "few things are as {adjective} as {topic}",
    "people often call {topic} {adjective}",
    "for {people}, {topic} is {adjective}",
)
MIDDLES: Final = (
    "it gives {noun} to {people}",
    "with {noun}, {people} can {verb} {manner}",
    "some {people} {verb} for {noun} {time}",
    "the {noun} feels {adjective} {time}",
    "because of {noun}, nothing is {adjective} for {people}",
)
KEYWORD_MIDDLES: Final = (
    "it is like a {keyword} {time}",
    "think of the {keyword} near the {noun}",
    "{time}, a {keyword} becomes {adjective}",
    "{people} compare it to a {keyword}",
)
CLOSINGS: Final = (
    "so {verb} {topic} {time}",
    "that is why {topic} stays {adjective}",
    "in the end, {topic} wins",
    "surely {topic} deserves {noun}",
)

MAX_WORDS: Final = 40
MAX_MIDDLES: Final = 4
MAX_KEYWORD_COUNT: Final = 3

# For each template, every sentence it yields. Slots are independent and uniform, so choosing a template and
# then one of its sentences, both uniformly, is the same as filling the slots.
Expansions = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class TopicGrammar:
    """Every sentence the grammar has for one topic, in lower case and without the full stop."""

    openings: Expansions
    middles: Expansions
    keyword_middles: Mapping[str, Expansions]
    closings: Expansions


class Style(NamedTuple):
    """What a writer decides before the first sentence; `keyword_count` of the `middles` carry the keyword."""

    lower: bool
    bullets: bool
    commas: bool
    start: str | None
    end: str | None
    keyword: str | None
    keyword_count: int
    middles: int

    @property
    def sentence_count(self) -> int:
        """Sentences of a text in this style: opening, middles, closing and the phrases."""
        return 2 + self.middles + (self.start is not None) + (self.end is not None)


def _expand(template: str, slots: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    fillings = (dict(zip(names, values, strict=True)) for values in product(*(slots[name] for name in names)))
    # A sentence with two adjectives never repeats one.
    distinct = (f for f in fillings if "other_adjective" not in f or f["adjective"] != f["other_adjective"])
    return tuple(template.format(**f) for f in distinct)


@cache
def topic_grammar(topic: str, *, commas: bool = True) -> TopicGrammar:
    """Enumerate the sentences of `topic`; without `commas`, from the templates that have none.

    Raises:
        ValueError: the grammar has no such topic.
    """
    if topic not in TOPICS:
        raise ValueError(f"topic: expected one of {', '.join(TOPICS)}, got {topic!r}")
    domain = TOPICS[topic]
    slots: dict[str, Sequence[str]] = {
        "topic": (topic,),
        "adjective": domain.adjectives,
        "other_adjective": domain.adjectives,
        "noun": domain.nouns,
        "verb": domain.verbs,
        "people": PEOPLE,
        "time": TIMES,
        "manner": MANNERS,
    }

    def expand(templates: Sequence[str], keyword: str = "") -> Expansions:
        chosen = (template for template in templates if commas or "," not in template)
        return tuple(_expand(template, {**slots, "keyword": (keyword,)}) for template in chosen)

    return TopicGrammar(
        openings=expand(OPENINGS),
        middles=expand(MIDDLES),
        keyword_middles={keyword: expand(KEYWORD_MIDDLES, keyword) for keyword in KEYWORDS},
        closings=expand(CLOSINGS),
    )


def sample_style(rng: Random) -> Style:
    """Draw the style of a text on which nothing is asked."""
    keyword = pick(rng, KEYWORDS) if rng.random() < 0.4 else None
    keyword_count = 1 + below(rng, MAX_KEYWORD_COUNT) if keyword else 0
    return Style(
        lower=rng.random() < 0.15,
        bullets=rng.random() < 0.15,
        commas=rng.random() < 0.75,
        start=pick(rng, START_PHRASES) if rng.random() < 0.25 else None,
        end=pick(rng, END_PHRASES) if rng.random() < 0.25 else None,
        keyword=keyword,
        keyword_count=keyword_count,
        middles=max(1 + below(rng, MAX_MIDDLES), keyword_count),
    )


def _draw(expansions: Expansions, rng: Random) -> str:
    return pick(rng, pick(rng, expansions))


def compose(topic: str, style: Style, rng: Random) -> list[str] | None:
    """Draw the sentences of one text about `topic` in `style`, in lower case; no sentence occurs twice.

    Returns:
        The sentences, or None where they came out longer than `MAX_WORDS` words: the caller draws again.
    """
    grammar = topic_grammar(topic, commas=style.commas)
    carriers = grammar.keyword_middles[style.keyword] if style.keyword is not None else ()
    middles: list[str] = []
    while len(middles) < style.middles:
        sentence = _draw(carriers if len(middles) < style.keyword_count else grammar.middles, rng)
        if sentence not in middles:
            middles.append(sentence)
    if style.keyword_count:
        middles = pick_some(rng, middles, len(middles))
    sentences = [_draw(grammar.openings, rng), *middles, _draw(grammar.closings, rng)]
    if style.start is not None:
        sentences.insert(0, style.start)
    if style.end is not None:
        sentences.append(style.end)
    return sentences if word_count(sentences) <= MAX_WORDS else None


def word_count(sentences: Sequence[str]) -> int:
    """Count the words of composed sentences, which the grammar separates by single spaces."""
    return sum([sentence.count(" ") + 1 for sentence in sentences])


def render(sentences: Sequence[str], *, lower: bool, bullets: bool) -> str:
    """Lay out lower-case sentences as prose or as one bullet each, with or without capitals."""
    cased = sentences if lower else [sentence[:1].upper() + sentence[1:] for sentence in sentences]
    return "- " + ".\n- ".join(cased) + "." if bullets else ". ".join(cased) + "."


def write(topic: str, style: Style, rng: Random) -> str | None:
    """Write one text about `topic` in `style`, or None as `compose` does."""
    sentences = compose(topic, style, rng)
    return render(sentences, lower=style.lower, bullets=style.bullets) if sentences is not None else None


def write_freely(rng: Random) -> str:
    """Write a text about a random topic in a random style."""
    while True:
        text = write(pick(rng, TOPIC_NAMES), sample_style(rng), rng)
        if text is not None:
            return text


def write_other_style(rng: Random) -> str:
    """Write telegraphic notes or a list of words: the grammar's vocabulary, but not its language."""
    topic = pick(rng, TOPIC_NAMES)
    domain = TOPICS[topic]
    if rng.random() < 0.5:
        pool = (*KEYWORDS, *domain.nouns, *domain.adjectives, topic)
        return " ".join(pick(rng, pool) for _ in range(5 + below(rng, 26))) + "."
    notes = []
    for _ in range(3 + below(rng, 6)):
        form = below(rng, 3)
        if form == 0:
            note = f"{topic} {pick(rng, domain.adjectives)}."
        elif form == 1:
            note = f"{pick(rng, domain.nouns)} and {pick(rng, domain.nouns)}."
        else:
            note = f"{topic}, {pick(rng, KEYWORDS)}, {pick(rng, domain.nouns)}."
        notes.append(note)
    # One capital in front only: the case of later sentences is one of the things that tell the styles apart.
    return " ".join(notes).capitalize()
