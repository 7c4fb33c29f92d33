"""The stochastic grammar in which mini-IF's experts write, and the other style that fills up the corpus.

An expert text is `[start phrase] opening middle{1,4} closing [end phrase]`. A sentence is one template with
its slots filled from the vocabulary of the topic's domain, so the sentences of a topic are finitely many:
they are enumerated once, and the writer and the parser (`language.py`) read the same enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from random import Random
from string import Formatter
from typing import Final, NamedTuple

from aapa.engine.tasks.mini_if.draws import below, pick, pick_some
from aapa.engine.tasks.mini_if.lexicon import PLAIN, Lexicon, lexicon_of
from aapa.engine.tasks.mini_if.page import PARTS, Layout, Page, Separation, set_out
from aapa.engine.tasks.mini_if.text import words

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
    titles: Expansions
    postscripts: Expansions


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
    layout: Layout = Layout()

    @property
    def sentence_count(self) -> int:
        """Sentences of a text in this style: opening, middles, closing and the phrases."""
        return 2 + self.middles + (self.start is not None) + (self.end is not None)

    @property
    def features(self) -> int:
        """How many of its choices a writer makes only where a prompt asks for them."""
        return self.lower + self.bullets + self.layout.features


def _expand(template: str, slots: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    fillings = (dict(zip(names, values, strict=True)) for values in product(*(slots[name] for name in names)))
    # A sentence with two adjectives never repeats one.
    distinct = (f for f in fillings if "other_adjective" not in f or f["adjective"] != f["other_adjective"])
    return tuple(template.format(**f) for f in distinct)


@cache
def topic_grammar(topic: str, *, commas: bool = True, templates: Lexicon | None = None) -> TopicGrammar:
    """Enumerate the sentences of `topic`; without `commas`, from the templates that have none.

    Args:
        topic: its own style has the vocabulary of its domain, and the keywords.
        commas: whether templates with a comma are used.
        templates: the style that has the sentences, if not the topic's own.

    Raises:
        ValueError: the grammar has no such topic.
    """
    own = lexicon_of(topic)
    domain, form = own.topics[topic], templates or own
    slots: dict[str, Sequence[str]] = {
        "topic": (topic,),
        "adjective": domain.adjectives,
        "other_adjective": domain.adjectives,
        "noun": domain.nouns,
        "verb": domain.verbs,
        "people": form.people,
        "time": form.times,
        "manner": form.manners,
    }

    def expand(templates: Sequence[str], keyword: str = "") -> Expansions:
        chosen = (template for template in templates if commas or "," not in template)
        return tuple(_expand(template, {**slots, "keyword": (keyword,)}) for template in chosen)

    return TopicGrammar(
        openings=expand(form.openings),
        middles=expand(form.middles),
        keyword_middles={keyword: expand(form.keyword_middles, keyword) for keyword in own.keywords},
        closings=expand(form.closings),
        titles=expand(form.titles),
        postscripts=expand(form.postscripts),
    )


def sample_style(rng: Random, lexicon: Lexicon = PLAIN) -> Style:
    """Draw the style of a text on which nothing is asked, in the default layout."""
    keyword = pick(rng, lexicon.keywords) if rng.random() < 0.4 else None
    keyword_count = 1 + below(rng, MAX_KEYWORD_COUNT) if keyword else 0
    return Style(
        lower=rng.random() < 0.15,
        bullets=rng.random() < 0.15,
        commas=rng.random() < 0.75,
        start=pick(rng, lexicon.start_phrases) if rng.random() < 0.25 else None,
        end=pick(rng, lexicon.end_phrases) if rng.random() < 0.25 else None,
        keyword=keyword,
        keyword_count=keyword_count,
        middles=max(1 + below(rng, MAX_MIDDLES), keyword_count),
    )


def sample_layout(rng: Random, *, quotes: bool) -> Layout:
    """Draw a layout for prose, with quotation marks now and then or never."""
    title = rng.random() < 0.18
    postscript = rng.random() < 0.18
    quoted = rng.random() < 0.15
    kind = rng.random()
    parts = pick(rng, PARTS) if kind < 0.3 else 1
    separation: Separation = "sections" if kind < 0.15 else "paragraphs" if kind < 0.3 else "prose"
    return Layout(title, separation, parts, postscript, quoted and quotes)


def _draw(expansions: Expansions, rng: Random) -> str:
    return pick(rng, pick(rng, expansions))


def compose(topic: str, style: Style, rng: Random, templates: Lexicon | None = None) -> list[str] | None:
    """Draw the sentences of one text about `topic` in `style`, in lower case; no sentence occurs twice.

    Returns:
        The sentences, or None where they came out longer than `MAX_WORDS` words: the caller draws again.
    """
    grammar = topic_grammar(topic, commas=style.commas, templates=templates)
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


def write(topic: str, style: Style, rng: Random, templates: Lexicon | None = None) -> str | None:
    """Write one text about `topic` in `style`, or None as `compose` does."""
    sentences = compose(topic, style, rng, templates)
    if sentences is None:
        return None
    if style.layout == Layout():
        return render(sentences, lower=style.lower, bullets=style.bullets)
    layout, grammar = style.layout, topic_grammar(topic, commas=style.commas, templates=templates)
    page = Page(
        groups=_divide(sentences, layout.parts, rng),
        separation=layout.separation,
        title=_draw(grammar.titles, rng) if layout.title else None,
        postscript=_draw(grammar.postscripts, rng) if layout.postscript else None,
        quoted=layout.quoted,
    )
    text = set_out(page, lower=style.lower)
    return text if len(words(text)) <= MAX_WORDS else None


def _divide(sentences: Sequence[str], parts: int, rng: Random) -> tuple[tuple[str, ...], ...]:
    """Cut the sentences into `parts` groups at random; none is empty."""
    cuts = sorted(pick_some(rng, range(1, len(sentences)), parts - 1))
    return tuple(tuple(sentences[a:b]) for a, b in pairwise((0, *cuts, len(sentences))))


def write_other_style(rng: Random, lexicon: Lexicon = PLAIN) -> str:
    """Write telegraphic notes or a list of words: the grammar's vocabulary, but not its language."""
    topic = pick(rng, lexicon.topic_names)
    domain = lexicon.topics[topic]
    if rng.random() < 0.5:
        pool = (*lexicon.keywords, *domain.nouns, *domain.adjectives, topic)
        return " ".join(pick(rng, pool) for _ in range(5 + below(rng, 26))) + "."
    notes = []
    for _ in range(3 + below(rng, 6)):
        form = below(rng, 3)
        if form == 0:
            note = f"{topic} {pick(rng, domain.adjectives)}."
        elif form == 1:
            note = f"{pick(rng, domain.nouns)} and {pick(rng, domain.nouns)}."
        else:
            note = f"{topic}, {pick(rng, lexicon.keywords)}, {pick(rng, domain.nouns)}."
        notes.append(note)
    # One capital in front only: the case of later sentences is one of the things that tell the styles apart.
    return " ".join(notes).capitalize()
