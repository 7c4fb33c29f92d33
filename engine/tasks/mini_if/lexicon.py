"""The words and sentence templates of mini-IF's two styles: plain ones about everyday things, formal reports.

A style is data only: the writer (`grammar.py`) and the parser (`language.py`) are the same for both. Topics are
singular and occur in no other text of either style, so a topic names its style.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final


@dataclass(frozen=True)
class Domain:
    """Topics that share a vocabulary."""

    topics: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]


# Compared by identity: there is one of each, and functions that enumerate sentences are cached by it.
@dataclass(frozen=True, eq=False)
class Lexicon:
    """All that the writers of one style know; phrases and templates are in lower case without a full stop."""

    name: str
    domains: tuple[Domain, ...]
    people: tuple[str, ...]
    times: tuple[str, ...]
    manners: tuple[str, ...]
    keywords: tuple[str, ...]
    start_phrases: tuple[str, ...]
    end_phrases: tuple[str, ...]
    openings: tuple[str, ...]
    middles: tuple[str, ...]
    keyword_middles: tuple[str, ...]
    closings: tuple[str, ...]
    titles: tuple[str, ...]
    postscripts: tuple[str, ...]

    @cached_property
    def topics(self) -> Mapping[str, Domain]:
        """The domain of every topic."""
        return {topic: domain for domain in self.domains for topic in domain.topics}

    @cached_property
    def topic_names(self) -> tuple[str, ...]:
        """All topics, in order."""
        return tuple(self.topics)


def _domain(topics: str, adjectives: str, nouns: str, verbs: str) -> Domain:
    return Domain(*(tuple(column.split()) for column in (topics, adjectives, nouns, verbs)))


PLAIN: Final = Lexicon(
    name="plain",
    domains=(
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
    ),
    people=("children", "old friends", "quiet people", "busy families"),
    times=("every morning", "at night", "on long days", "after work"),
    manners=("slowly", "with joy", "without fear"),
    keywords=("river", "lamp", "stone", "garden", "window", "bridge", "mirror", "candle", "ladder", "basket"),
    start_phrases=("listen closely", "here we go", "let me explain", "well then"),
    end_phrases=("think about it", "that is all", "enjoy the day", "ask me again"),
    openings=(
        "{topic} can be {adjective} and {other_adjective}",
        "few things are as {adjective} as {topic}",
        "people often call {topic} {adjective}",
        "for {people}, {topic} is {adjective}",
    ),
    middles=(
        "it gives {noun} to {people}",
        "with {noun}, {people} can {verb} {manner}",
        "some {people} {verb} for {noun} {time}",
        "the {noun} feels {adjective} {time}",
        "because of {noun}, nothing is {adjective} for {people}",
    ),
    keyword_middles=(
        "it is like a {keyword} {time}",
        "think of the {keyword} near the {noun}",
        "{time}, a {keyword} becomes {adjective}",
        "{people} compare it to a {keyword}",
    ),
    closings=(
        "so {verb} {topic} {time}",
        "that is why {topic} stays {adjective}",
        "in the end, {topic} wins",
        "surely {topic} deserves {noun}",
    ),
    titles=("{adjective} {topic}", "{topic} and {noun}", "on {topic}"),
    postscripts=("bring {noun} next time", "{people} love it {manner}", "nobody forgets the {noun}"),
)

FORMAL: Final = Lexicon(
    name="formal",
    domains=(
        _domain(
            "payroll billing taxation auditing",
            "accurate late complete costly",
            "revenue liability margin evidence",
            "review approve settle",
        ),
        _domain(
            "hosting encryption networking storage",
            "secure scalable stable slow",
            "latency bandwidth uptime redundancy",
            "configure monitor upgrade",
        ),
        _domain(
            "shipping packaging warehousing procurement",
            "prompt seasonal local bulky",
            "freight inventory demand capacity",
            "schedule track outsource",
        ),
        _domain(
            "recruitment onboarding mentoring compliance",
            "fair voluntary formal urgent",
            "talent policy training retention",
            "plan document evaluate",
        ),
        _domain(
            "marketing pricing branding advertising",
            "visible dynamic premium digital",
            "growth attention loyalty reach",
            "launch measure target",
        ),
        _domain(
            "welding assembly calibration maintenance",
            "precise automated routine rigid",
            "torque tolerance wear throughput",
            "inspect test certify",
        ),
    ),
    people=("managers", "senior engineers", "external auditors", "regional teams"),
    times=("each quarter", "before release", "during peak hours", "under contract"),
    manners=("promptly", "with care", "without delay"),
    keywords=(
        "ledger",
        "memo",
        "charter",
        "dashboard",
        "vendor",
        "invoice",
        "checklist",
        "workshop",
        "database",
        "forecast",
    ),
    start_phrases=("for the record", "please note", "status update", "executive summary"),
    end_phrases=("details will follow", "no action is required", "end of report", "approval is pending"),
    openings=(
        "this report finds {topic} {adjective} and {other_adjective}",
        "{topic} remains {adjective} across the company",
        "in this period, {topic} was {adjective}",
        "{people} rated {topic} as {adjective}",
    ),
    middles=(
        "results indicate more {noun} for {people}",
        "given the {noun}, {people} must {verb} {manner}",
        "most {people} {verb} the {noun} {time}",
        "the {noun} stayed {adjective} {time}",
        "due to {noun}, costs are {adjective} for {people}",
    ),
    keyword_middles=(
        "progress depends on the {keyword} {time}",
        "refer to the {keyword} regarding {noun}",
        "{time}, the {keyword} was {adjective}",
        "{people} updated the {keyword}",
    ),
    closings=(
        "we therefore {verb} {topic} {time}",
        "hence {topic} should stay {adjective}",
        "in summary, {topic} requires {noun}",
        "the board supports {topic}",
    ),
    titles=("{adjective} {topic}", "{topic} and {noun}", "summary of {topic}"),
    postscripts=("figures on {noun} are attached", "contact {people} {manner}", "a copy covers the {noun}"),
)

LEXICONS: Final[Mapping[str, Lexicon]] = {lexicon.name: lexicon for lexicon in (PLAIN, FORMAL)}
LEXICON_OF: Final[Mapping[str, Lexicon]] = {topic: lexicon for lexicon in LEXICONS.values() for topic in lexicon.topics}


def lexicon_of(topic: str) -> Lexicon:
    """Return the style that `topic` belongs to.

    Raises:
        ValueError: no style has such a topic.
    """
    if topic not in LEXICON_OF:
        raise ValueError(f"topic: expected one of {', '.join(LEXICON_OF)}, got {topic!r}")
    return LEXICON_OF[topic]
