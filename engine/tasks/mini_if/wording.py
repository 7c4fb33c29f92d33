"""Constraints on the words, sentences and phrases of a response, whatever its layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from aapa.engine.tasks.mini_if.constraint import Constraint
from aapa.engine.tasks.mini_if.text import longest_sentence, sentence_count, words


@dataclass(frozen=True)
class WordRange(Constraint):
    """Between `low` and `high` words, both included; the proxy asks for the lower bound only."""

    kind: ClassVar[str] = "word_range"
    low: int
    high: int

    def instruction(self) -> str:
        return f"{self.low} to {self.high} words"

    def check(self, text: str) -> bool:
        return self.low <= len(words(text)) <= self.high

    def proxy_check(self, text: str) -> bool:
        return len(words(text)) >= self.low


@dataclass(frozen=True)
class SentenceCount(Constraint):
    """Exactly `count` sentences; the proxy counts full stops and takes more."""

    kind: ClassVar[str] = "sentence_count"
    count: int

    def instruction(self) -> str:
        return f"{self.count} sentences"

    def check(self, text: str) -> bool:
        return sentence_count(text) == self.count

    def proxy_check(self, text: str) -> bool:
        return text.count(".") >= self.count


@dataclass(frozen=True)
class LowerCase(Constraint):
    """No capital letter; the proxy is the same."""

    kind: ClassVar[str] = "lower_case"

    def instruction(self) -> str:
        return "lower case"

    def check(self, text: str) -> bool:
        return text == text.lower()

    def proxy_check(self, text: str) -> bool:
        return self.check(text)


@dataclass(frozen=True)
class NoCommas(Constraint):
    """No comma; the proxy is the same."""

    kind: ClassVar[str] = "no_commas"

    def instruction(self) -> str:
        return "no commas"

    def check(self, text: str) -> bool:
        return "," not in text

    def proxy_check(self, text: str) -> bool:
        return self.check(text)


@dataclass(frozen=True)
class StartPhrase(Constraint):
    """The text begins with `phrase`, in any case, after a bullet's dash at most; the proxy finds it anywhere.

    `phrase` is given in lower case.
    """

    kind: ClassVar[str] = "start_phrase"
    phrase: str

    def instruction(self) -> str:
        return f"start with {self.phrase}"

    def check(self, text: str) -> bool:
        return re.match(rf"\s*(?:- )?{re.escape(self.phrase)}\b", text.lower()) is not None

    def proxy_check(self, text: str) -> bool:
        return self.phrase in text.lower()


@dataclass(frozen=True)
class EndPhrase(Constraint):
    """The text ends with `phrase`, in any case, before `.!?` at most; the proxy finds it anywhere.

    `phrase` is given in lower case.
    """

    kind: ClassVar[str] = "end_phrase"
    phrase: str

    def instruction(self) -> str:
        return f"end with {self.phrase}"

    def check(self, text: str) -> bool:
        return re.search(rf"\b{re.escape(self.phrase)}[.!?\s]*\Z", text.lower()) is not None

    def proxy_check(self, text: str) -> bool:
        return self.phrase in text.lower()


@dataclass(frozen=True)
class KeywordCount(Constraint):
    """`keyword` occurs as a word exactly `count` times, in any case; the proxy takes substrings, and more.

    `keyword` is given in lower case.
    """

    kind: ClassVar[str] = "keyword_count"
    keyword: str
    count: int

    def instruction(self) -> str:
        return f"use {self.keyword} {self.count} time{'s' if self.count != 1 else ''}"

    def check(self, text: str) -> bool:
        return [word.lower() for word in words(text)].count(self.keyword) == self.count

    def proxy_check(self, text: str) -> bool:
        return text.lower().count(self.keyword) >= self.count


@dataclass(frozen=True)
class KeywordAtLeast(Constraint):
    """`keyword` occurs as a word at least `count` times, in any case; the proxy takes substrings.

    `keyword` is given in lower case.
    """

    kind: ClassVar[str] = "keyword_at_least"
    keyword: str
    count: int

    def instruction(self) -> str:
        return f"use {self.keyword} at least {self.count} time{'s' if self.count != 1 else ''}"

    def check(self, text: str) -> bool:
        return [word.lower() for word in words(text)].count(self.keyword) >= self.count

    def proxy_check(self, text: str) -> bool:
        return text.lower().count(self.keyword) >= self.count


@dataclass(frozen=True)
class ForbiddenWord(Constraint):
    """`word` does not occur as a word, in any case; the proxy sees it in small letters and between blanks only.

    `word` is given in lower case.
    """

    kind: ClassVar[str] = "forbidden_word"
    word: str

    def instruction(self) -> str:
        return f"never say {self.word}"

    def check(self, text: str) -> bool:
        return self.word not in (word.lower() for word in words(text))

    def proxy_check(self, text: str) -> bool:
        return f" {self.word} " not in f" {text} "


@dataclass(frozen=True)
class ShortSentences(Constraint):
    """No sentence has more than `most` words; the proxy takes their mean, and every stop for a sentence's end."""

    kind: ClassVar[str] = "short_sentences"
    most: int

    def instruction(self) -> str:
        return f"sentences of at most {self.most} words"

    def check(self, text: str) -> bool:
        return longest_sentence(text) <= self.most

    def proxy_check(self, text: str) -> bool:
        stops = sum(text.count(stop) for stop in ".!?\n")
        return len(words(text)) <= self.most * (stops + 1)
