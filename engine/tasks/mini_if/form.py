"""Constraints on how a response is set out; of the case of `Part` and `P.S.` none of them takes notice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from aapa.engine.tasks.mini_if.constraint import Constraint
from aapa.engine.tasks.mini_if.text import words

QUOTE: Final = '"'
SEPARATOR: Final = "***"
_HEADING: Final = re.compile(r"^part ([0-9]+)[ \t]*$", re.MULTILINE | re.IGNORECASE | re.ASCII)
_SEPARATOR_LINE: Final = re.compile(rf"^{re.escape(SEPARATOR)}[ \t]*$", re.MULTILINE)
_TITLE: Final = re.compile(r"<<([^<>\n]+)>>[ \t]*\n")


def _unquoted(text: str) -> str:
    """Leave out an opening quotation mark, so that a quoted text still begins with its title or heading."""
    return text.strip().removeprefix(QUOTE)


@dataclass(frozen=True)
class Bullets(Constraint):
    """Exactly `count` lines, each a bullet with a word; the proxy counts `- ` anywhere and takes more."""

    kind: ClassVar[str] = "bullets"
    count: int

    def instruction(self) -> str:
        return f"{self.count} bullets"

    def check(self, text: str) -> bool:
        lines = text.strip().split("\n")
        return len(lines) == self.count and all(line.startswith("- ") and words(line) for line in lines)

    def proxy_check(self, text: str) -> bool:
        return text.count("- ") >= self.count


@dataclass(frozen=True)
class Sections(Constraint):
    """Exactly `count` headings on lines of their own, `Part 1` and so on, each followed by a word before the next.

    What stands before the first heading is free. The proxy counts `part` anywhere and takes more.
    """

    kind: ClassVar[str] = "sections"
    count: int

    def instruction(self) -> str:
        return f"sections Part 1 to Part {self.count}"

    def check(self, text: str) -> bool:
        _, *pieces = _HEADING.split(_unquoted(text))
        numbers, bodies = pieces[::2], pieces[1::2]
        wanted = [str(number) for number in range(1, self.count + 1)]
        return numbers == wanted and all(words(body) for body in bodies)

    def proxy_check(self, text: str) -> bool:
        return text.lower().count("part") >= self.count


@dataclass(frozen=True)
class Quotation(Constraint):
    """The whole text stands in one pair of double quotes; the proxy looks for two of them anywhere."""

    kind: ClassVar[str] = "quotation"

    def instruction(self) -> str:
        return "all in double quotes"

    def check(self, text: str) -> bool:
        stripped = text.strip()
        return len(stripped) > 1 and stripped[0] == stripped[-1] == QUOTE and QUOTE not in stripped[1:-1]

    def proxy_check(self, text: str) -> bool:
        return text.count(QUOTE) >= 2


@dataclass(frozen=True)
class Postscript(Constraint):
    """The last line, and not the only one, begins with `P.S.` and says something; the proxy finds it anywhere."""

    kind: ClassVar[str] = "postscript"

    def instruction(self) -> str:
        return "add a postscript"

    def check(self, text: str) -> bool:
        before, _, last = text.strip().rpartition("\n")
        return last.lower().startswith("p.s.") and bool(words(last[4:])) and bool(words(before))

    def proxy_check(self, text: str) -> bool:
        return "p.s." in text.lower()


@dataclass(frozen=True)
class Title(Constraint):
    """The first line is a title in `<<` and `>>`, and text follows; the proxy wants the brackets anywhere."""

    kind: ClassVar[str] = "title"

    def instruction(self) -> str:
        return "title in << >>"

    def check(self, text: str) -> bool:
        found = _TITLE.match(_unquoted(text))
        return found is not None and bool(words(found[1])) and bool(words(_unquoted(text)[found.end() :]))

    def proxy_check(self, text: str) -> bool:
        return "<<" in text and ">>" in text


@dataclass(frozen=True)
class Paragraphs(Constraint):
    """Exactly `count` stretches with a word, with `***` on a line of its own between; the proxy counts `***`."""

    kind: ClassVar[str] = "paragraphs"
    count: int

    def instruction(self) -> str:
        return f"{self.count} paragraphs parted by {SEPARATOR}"

    def check(self, text: str) -> bool:
        parts = _SEPARATOR_LINE.split(text)
        return len(parts) == self.count and all(words(part) and SEPARATOR not in part for part in parts)

    def proxy_check(self, text: str) -> bool:
        return text.count(SEPARATOR) >= self.count - 1
