"""Problems of reasoning-gym: which datasets, with what settings, and in which split each problem belongs."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from types import ModuleType
from typing import Any, Final

from aapa.engine.errors import UserError
from aapa.engine.tasks.reasoning.expressions import parse
from aapa.engine.tasks.splits import by_hash

DEFAULT_SIZES: Final = {"train": 4000, "dev": 512, "test": 512, "held_out": 512}


@dataclass(frozen=True)
class Source:
    """A dataset of reasoning-gym.

    Attributes:
        settings: what training and its evaluation splits are drawn with.
        larger: what differs for the split held_out.
        limit: a problem with a number beyond it, of either sign, is held out.
    """

    settings: Mapping[str, Any]
    larger: Mapping[str, Any]
    limit: int


# `allow_parentheses` is left on: without them basic_arithmetic evaluates from left to right, whatever binds more
# tightly, and about one answer in twenty is wrong. Division is left out, for it rounds.
SOURCES: Final[Mapping[str, Source]] = {
    "chain_sum": Source(
        settings={"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1},
        larger={"min_digits": 2, "max_digits": 2},
        limit=9,
    ),
    "basic_arithmetic": Source(
        settings={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1, "operators": ("+", "-", "*")},
        larger={"min_digits": 2, "max_digits": 2},
        limit=9,
    ),
    "gcd": Source(settings={"min_value": 2, "max_value": 60}, larger={"min_value": 61, "max_value": 120}, limit=60),
    "lcm": Source(settings={"min_value": 2, "max_value": 30}, larger={"min_value": 31, "max_value": 50}, limit=30),
}


@dataclass(frozen=True)
class Problem:
    """A question of the package with its answer.

    Attributes:
        dataset: one of `SOURCES`.
        question: as the package words it.
        given: the expression, or the numbers separated by commas.
        answer: an integer.
    """

    dataset: str
    question: str
    given: str
    answer: str

    @property
    def numbers(self) -> list[int]:
        """The numbers of the question, in order."""
        return [int(digits) for digits in re.findall(r"-?[0-9]+", self.given)]

    @property
    def prompt(self) -> str:
        """The question, followed by an empty line."""
        return f"{self.question}\n\n"

    @property
    def key(self) -> str:
        """What problems with the same solutions share, whatever the order of two numbers or needless parentheses."""
        if self.dataset in ("gcd", "lcm"):
            return f"{self.dataset} of {sorted(self.numbers)}"
        return str(parse(self.given))

    @property
    def split(self) -> str:
        """The only split in which the problem may appear."""
        if max(map(abs, self.numbers)) > SOURCES[self.dataset].limit:
            return "held_out"
        return by_hash(self.key, {split: DEFAULT_SIZES[split] for split in ("train", "dev", "test")})


@cache
def package() -> ModuleType:
    """Return reasoning-gym, which takes seconds to import and which nobody else needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        # One of its own imports that is missing is another fault: show the whole trace.
        if error.name != "reasoning_gym":
            raise
        raise UserError(
            "data.task: expected the package reasoning-gym for the task 'reasoning', got none; "
            "install it with: pip install 'aapa[reasoning]'"
        ) from None


def problems(dataset: str, stream: str, *, larger: bool = False) -> Iterator[Problem]:
    """Draw problems of one dataset without end; the same ones for the same `stream`.

    Args:
        dataset: one of `SOURCES`.
        stream: the name of a random stream.
        larger: whether to draw what is held out.
    """
    source = SOURCES[dataset]
    # The package seeds item i with seed + i, so seeds that lie close together would share most of their items.
    seed = int.from_bytes(hashlib.sha256(f"{stream}/{dataset}".encode()).digest()[:7])
    settings = {**source.settings, **(source.larger if larger else {})}
    drawn = package().create_dataset(dataset, seed=seed, **settings)
    for index in count():
        item = drawn[index]
        data = item["metadata"]
        given = data["expression"] if "expression" in data else ", ".join(map(str, data["numbers"]))
        yield Problem(dataset, item["question"], given, item["answer"])
