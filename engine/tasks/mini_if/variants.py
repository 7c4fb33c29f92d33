"""Which mini-IF it is: how much its prompts ask (the difficulty) and what its experts write like (the style)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from aapa.engine.tasks.mini_if.constraints import CONSTRAINTS, Constraint
from aapa.engine.tasks.mini_if.draws import pick
from aapa.engine.tasks.mini_if.form import Bullets, Paragraphs, Postscript, Quotation, Sections, Title
from aapa.engine.tasks.mini_if.grammar import Style, sample_layout, sample_style, write
from aapa.engine.tasks.mini_if.lexicon import LEXICONS, PLAIN, Lexicon
from aapa.engine.tasks.mini_if.wording import (
    EndPhrase,
    ForbiddenWord,
    KeywordAtLeast,
    KeywordCount,
    LowerCase,
    NoCommas,
    ShortSentences,
    StartPhrase,
    WordRange,
)

Types = frozenset[type[Constraint]]

HELD_OUT_PAIRS: Final[tuple[Types, ...]] = (
    frozenset((KeywordCount, WordRange)),
    frozenset((NoCommas, EndPhrase)),
    frozenset((Bullets, StartPhrase)),
)
# Each with a type that easy prompts lack, so that no easy prompt of training is held out from harder ones.
MORE_HELD_OUT_PAIRS: Final[tuple[Types, ...]] = (
    *HELD_OUT_PAIRS,
    frozenset((Paragraphs, Postscript)),
    frozenset((Title, LowerCase)),
    frozenset((Sections, NoCommas)),
    frozenset((ForbiddenWord, Bullets)),
)
# One needs a mark on the page that training never shows, the other only a turn of phrase that it never explains.
HELD_OUT_TYPES: Final[Types] = frozenset((Quotation, KeywordAtLeast))


@dataclass(frozen=True)
class Difficulty:
    """How much prompts ask.

    Attributes:
        name: the task's option.
        numbers: how many constraints to state, each number as often as it is drawn.
        types: the types of constraints that prompts state.
        held_out_pairs: pairs of types that training never shows together.
        held_out_types: types that training never shows.
    """

    name: str
    numbers: tuple[int, ...]
    types: Types
    held_out_pairs: tuple[Types, ...]
    held_out_types: Types = frozenset()

    @property
    def most(self) -> int:
        """The most constraints a prompt states."""
        return max(self.numbers)

    @property
    def layouts(self) -> bool:
        """Whether there are titles, sections and so on: whatever is not easy."""
        return bool(self.held_out_types)


_ALL: Final = frozenset(CONSTRAINTS.values())
EASY: Final = Difficulty(
    name="easy",
    numbers=(1,) * 3 + (2,) * 9 + (3,) * 8,
    types=_ALL - {KeywordAtLeast, ForbiddenWord, ShortSentences, Sections, Paragraphs, Title, Postscript, Quotation},
    held_out_pairs=HELD_OUT_PAIRS,
)
MEDIUM: Final = Difficulty("medium", (1,) * 3 + (2,) * 9 + (3,) * 8, _ALL, MORE_HELD_OUT_PAIRS, HELD_OUT_TYPES)
HARD: Final = Difficulty("hard", (2,) * 6 + (3,) * 9 + (4,) * 5, _ALL, MORE_HELD_OUT_PAIRS, HELD_OUT_TYPES)
DIFFICULTIES: Final[Mapping[str, Difficulty]] = {level.name: level for level in (EASY, MEDIUM, HARD)}


@dataclass(frozen=True)
class Variant:
    """One style at one difficulty."""

    lexicon: Lexicon = PLAIN
    difficulty: Difficulty = EASY

    def stream(self, name: str) -> Random:
        """Return a random stream of its own for whatever `name` says."""
        # What is published was drawn before there were variants, from streams that name none.
        place = "" if self == Variant() else f"{self.lexicon.name}/{self.difficulty.name}/"
        return Random(f"mini-if/{place}{name}")

    @property
    def other(self) -> Lexicon:
        """The style that this one is not."""
        return next(lexicon for lexicon in LEXICONS.values() if lexicon is not self.lexicon)

    def sample_style(self, rng: Random, *, quotes: bool = True) -> Style:
        """Draw the style of a text on which nothing is asked, but which prompts of the variant could ask for.

        Args:
            rng: the stream to draw from.
            quotes: False leaves out the form of the types that training never shows.
        """
        while True:
            style = sample_style(rng, self.lexicon)
            if self.difficulty.layouts and not style.bullets:
                style = style._replace(layout=sample_layout(rng, quotes=quotes))
            # A prompt asks for every feature of the style, so a text with more of them is no expert's.
            if style.features <= self.difficulty.most:
                return style

    def write_freely(self, rng: Random, *, quotes: bool = False) -> str:
        """Write a text about a random topic in a random style, by default without the form of a held-out type."""
        while True:
            text = write(pick(rng, self.lexicon.topic_names), self.sample_style(rng, quotes=quotes), rng)
            if text is not None:
                return text

    def is_held_out(self, constraints: Iterable[Constraint]) -> bool:
        """Say whether the constraints contain a pair of types that training never shows together."""
        kinds = {type(constraint) for constraint in constraints}
        return any(pair <= kinds for pair in self.difficulty.held_out_pairs)

    def has_held_out_type(self, constraints: Iterable[Constraint]) -> bool:
        """Say whether one of the constraints is of a type that training never shows."""
        return any(type(constraint) in self.difficulty.held_out_types for constraint in constraints)


DEFAULT: Final = Variant()
