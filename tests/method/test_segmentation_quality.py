"""How well the cut of token ids agrees with cutting the text (METHOD §1), by genre and kind of tokenizer.

`python -m tests.method.test_segmentation_quality` prints the table of `docs/segmentation.md`.

The truth: blank lines, code blocks, displayed formulas, headings, table rows and list items divide a text; `sentencex`
cuts what is left, paragraph by paragraph. It knows no Markdown, so marks of emphasis are taken away before and a list
item is given to it without its mark.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.kernels import SentenceTable
from aapa.sentences import build_sentence_table, byte_alphabet, spans, vocabulary_bytes
from tests.method.segmentation_corpus import GENRES, texts

TEXTS, SIZE = 120, 3000
FENCE = re.compile(r"[ >]*(`{3,})([^`]*)$")
INLINE_FORMULA = re.compile(r"\$\$(?:(?!\$\$).)+\$\$|\\\[(?:(?!\\\]).)+\\\]", re.DOTALL)
FORMULA = re.compile(rf"[ \t]*(?:{INLINE_FORMULA.pattern})[ \t]*$", re.DOTALL | re.MULTILINE)
ITEM = re.compile(r"[ >\t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+")
HEADING_OR_ROW = re.compile(r"[ >\t]*(?:#{1,6} |\|)")
CODE_SPAN_OR_EMPHASIS = re.compile(r"(`+[^`]*`+)|\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)")


class Blocks:
    """Divides a text: places where sentences begin, and paragraphs as (place in the text, character) lists."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.begins: set[int] = set()
        self.paragraphs: list[list[tuple[int, str]]] = []
        self.open = False
        place = 0
        while place < len(text):
            place = self.atomic(place) or self.line(place)

    def atomic(self, place: int) -> int:
        """End of the code block or displayed formula that begins in this line, else 0."""
        line = self.text[place : self.line_end(place)]
        if fence := FENCE.match(line.rstrip("\n")):
            end = self.line_end(place)
            while end < len(self.text):
                inner = self.text[end : self.line_end(end)].strip(" >\n")
                end = self.line_end(end)
                if inner and not inner.strip("`") and len(inner) >= len(fence[1]):
                    break
        elif formula := FORMULA.match(self.text, place):
            end = self.line_end(formula.end() - 1)
        else:
            return 0
        self.begins |= {place, end}
        self.open = False
        return end

    def line(self, place: int) -> int:
        """Takes a line of prose; its end."""
        end = self.line_end(place)
        line = self.text[place:end]
        content = place + len(line) - len(line.lstrip(" \t>"))
        item = ITEM.match(line)
        if not line.strip(" \t>\n"):
            self.open = False
        elif HEADING_OR_ROW.match(line):
            self.begins |= {place, end}
            self.open = False
        else:
            if item or not self.open:
                self.begins.add(place)
                self.paragraphs.append([])
                self.open = True
            content = place + item.end() if item else content
            self.paragraphs[-1] += [(i, self.text[i]) for i in range(content, end)]
        return end

    def line_end(self, place: int) -> int:
        return (self.text.find("\n", place) + 1) or len(self.text)


def without_marks(paragraph: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Less its marks of emphasis, and with formulas as one word."""
    text = "".join(character for _, character in paragraph)
    dropped = {i for m in CODE_SPAN_OR_EMPHASIS.finditer(text) if not m[1] for i in range(m.start(), m.end())}
    formulas = {i for m in INLINE_FORMULA.finditer(text) for i in range(m.start(), m.end())}
    kept = [(i, pair) for i, pair in enumerate(paragraph) if i not in dropped]
    return [(place, "x" if i in formulas else character) for i, (place, character) in kept]


def true_boundaries(text: str, language: str = "en") -> list[tuple[int, int]]:
    """Where sentences of a text begin, as (end of the one before, beginning): blanks between belong to either."""
    blocks = Blocks(text)
    begins = set(blocks.begins)
    for paragraph in blocks.paragraphs:
        kept = without_marks(paragraph)
        pieces = sentencex.segment(language, "".join(character for _, character in kept))
        for end in accumulate(map(len, pieces[:-1])):
            left = "".join(character for _, character in kept[:end]).rstrip()
            # What closes emphasis stands behind the last character that sentencex has seen.
            place = kept[len(left) - 1][0] + 1 if left else kept[0][0]
            begins.add(place + len(text[place:]) - len(text[place:].lstrip("*_")))
    found = set()
    for begin in begins:
        before, after = text[:begin].rstrip(), text[begin:].lstrip()
        if before and after:
            found.add((len(before), len(text) - len(after)))
    return sorted(found)


def predicted(text: str, ends: list[int], cuts: list[int]) -> set[int]:
    """Cuts as places in the text, behind the blanks that follow."""
    places = (ends[cut - 1] for cut in cuts)
    return {len(text) - len(text[place:].lstrip()) for place in places if text[place:].strip() and text[:place].strip()}


def moved(text: str, ends: list[int], truth: Iterable[tuple[int, int]]) -> set[int]:
    """True boundaries at ends of tokens."""
    places = set()
    for low, high in truth:
        end = ends[bisect.bisect_left(ends, low)]
        place = end if end > high else high
        if text[place:].strip():
            places.add(len(text) - len(text[place:].lstrip()))
    return places


class Subject:
    """A tokenizer with its table."""

    def __init__(self, backend: Tokenizer) -> None:
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        self.table: SentenceTable = build_sentence_table(self.tokenizer)
        self.entries = vocabulary_bytes(self.tokenizer)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and where in the text each ends; a character belongs to the token that completes it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        data = b"".join(self.entries[i] for i in ids)
        # Some tokenizers put a blank before the text.
        extra = len(data) - len(text.encode())
        assert data[extra:].decode() == text and not data[:extra].strip(), (text, data)
        places = list(accumulate(len(character.encode()) for character in text))
        ends = accumulate(len(self.entries[i]) for i in ids)
        return ids, [bisect.bisect_right(places, end - extra) for end in ends]

    def cut(self, responses: list[list[int]]) -> list[list[int]]:
        """Boundaries inside of each text, as numbers of tokens before them."""
        return [cu_sents.tolist()[1:-1] for cu_sents in spans(responses, self.table)]


def training_texts() -> Iterator[str]:
    """What tokenizers are trained on: the words of the corpus, as real ones know those of their language."""
    for genre in GENRES:
        yield from texts(genre, 60, seed=1)


def trained(
    model: models.Model, pre: pre_tokenizers.PreTokenizer, trainer: trainers.Trainer, whole_lines: bool = False
) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre
    lines = (line for text in training_texts() for line in text.splitlines())
    backend.train_from_iterator(lines if whole_lines else training_texts(), trainer)
    return backend


def byte_level(pattern: str | None) -> Tokenizer:
    """Of GPT-2's kind, or with another pattern that words and signs are first divided by."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre])
    backend = trained(models.BPE(), pre, trainer)
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_fallback() -> Tokenizer:
    """Of Llama 2's kind: a line break and rare characters are spelled in bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<unk>", "</s>"], limit_alphabet=160, show_progress=False
    )
    pre = pre_tokenizers.Metaspace(prepend_scheme="always")
    state = json.loads(trained(models.BPE(), pre, trainer, whole_lines=True).to_str())["model"]
    vocabulary = state["vocab"] | {f"<0x{byte:02X}>": len(state["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in state["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first")
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), metaspace])
    backend = trained(models.Unigram(), pre, trainer)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return backend


# The pattern of Llama 3 and Qwen, which joins line breaks to the signs before them.
PATTERN = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|[^\r\n\p{L}\p{N}]?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": lambda: byte_level(None),
    "byte-level BPE, Llama 3's pattern": lambda: byte_level(PATTERN),
    "BPE with byte fallback": byte_fallback,
    "unigram": unigram,
}


@cache
def subject(kind: str) -> Subject:
    return Subject(KINDS[kind]())


@cache
def corpus(genre: str) -> list[tuple[str, list[tuple[int, int]]]]:
    language = "zh" if genre == "CJK" else "en"
    return [(text, true_boundaries(text, language)) for text in texts(genre, TEXTS)]


class Counts(NamedTuple):
    """Boundaries found, true ones, and those that are both."""

    found: int = 0
    true: int = 0
    both: int = 0

    def __add__(self, other: tuple[int, ...]) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def f1(self) -> float:
        return 2 * self.both / (self.found + self.true)


@cache
def counts(kind: str, genre: str) -> Counts:
    encoded = [subject(kind).encode(text) for text, _ in corpus(genre)]
    cuts = subject(kind).cut([ids for ids, _ in encoded])
    total = Counts()
    for (text, truth), (_, ends), cut in zip(corpus(genre), encoded, cuts, strict=True):
        found, true = predicted(text, ends, cut), moved(text, ends, truth)
        total += Counts(len(found), len(true), len(found & true))
    return total


PIECES = [
    "Mr",
    "etc",
    "p.m",
    "No",
    "I",
    "a",
    "B",
    "1",
    "2",
    ".",
    "...",
    "!",
    "?",
    "…",
    ",",
    "。",
    "，",
    "(",
    ")",
    "[",
    "]",
    "`",
    "```",
    "$",
    "$$",
    "\\[",
    "\\]",
    "|",
    ">",
    '"',
    "“",
    "”",
    "」",
    "好",
    "😀",
]
PIECES += [" ", " ", "\n", "\n\n", "# ", "- ", "* ", "1. "]
some_text = st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join)
some_lengths = st.lists(st.integers(1, 6), min_size=60, max_size=60)


def cut_pieces(pieces: list[bytes]) -> list[int]:
    """Where sentences end, in bytes, if these pieces are the tokens."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    order = list(dict.fromkeys(pieces))
    vocabulary = {"".join(letters[bytes([b])] for b in piece): index for index, piece in enumerate(order)}
    backend = Tokenizer(models.WordLevel(vocabulary, next(iter(vocabulary), "")))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert vocabulary_bytes(tokenizer) == order
    (cu_sents,) = spans([[order.index(piece) for piece in pieces]], build_sentence_table(tokenizer))
    return [sum(map(len, pieces[:cut])) for cut in cu_sents.tolist()]


def divided(data: bytes, ends: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(min(end, len(data)) for end in ends)})
    return [data[a:b] for a, b in pairwise(places)]


@settings(max_examples=200)
@given(some_text, some_lengths)
def test_the_cut_does_not_depend_on_the_tokens(text: str, lengths: list[int]) -> None:
    """So long as no boundary lies in a token: fences, signs and abbreviations may come in any pieces."""
    data = text.encode()
    characters = [character.encode() for character in text]
    boundaries = cut_pieces(characters)
    starts = [0, *accumulate(map(len, characters))]
    ends = [starts[min(end, len(characters))] for end in accumulate(lengths)]
    assert cut_pieces(divided(data, [*ends, *boundaries])) == boundaries


@settings(max_examples=200)
@given(some_text, some_lengths)
def test_no_boundary_is_inside_a_character_however_its_bytes_are_spread(text: str, lengths: list[int]) -> None:
    data = text.encode()
    for end in cut_pieces(divided(data, accumulate(lengths))):
        data[:end].decode()


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_agrees_with_that_of_the_text(kind: str) -> None:
    scores = {genre: round(counts(kind, genre).f1, 3) for genre in GENRES}
    assert all(score >= 0.93 for score in scores.values()), scores
    assert sum((counts(kind, genre) for genre in GENRES), Counts()).f1 >= 0.97


@pytest.mark.parametrize("genre", GENRES)
def test_the_measure_tells_a_wrong_cut(genre: str) -> None:
    """Cutting behind every stop and line break, as one does without looking any further, does not pass."""
    total = Counts()
    for text, truth in corpus(genre):
        ends = list(range(1, len(text) + 1))
        naive = [m.end() for m in re.finditer(r"[.!?。！？]+|\n", text)]
        found, true = predicted(text, ends, naive), moved(text, ends, truth)
        total += Counts(len(found), len(true), len(found & true))
    assert total.f1 < 0.9


MARKED = [
    "# A. Heading\n|Soft\nwrap. |Next.\n\n|- one. |Two\n|- three\n  goes on\n|1. four",
    "Text:\n|```py\nx. Y!\n\n# z\n```\n|After. |**Bold.** |Next `a. B`.",
    "|$$\na. B\n$$\n|where $$a. B$$ is.\n|\\[ x. Y \\]\n|> quoted. |On\n> and on.",
]


@pytest.mark.parametrize("marked", MARKED)
def test_the_truth_of_markdown(marked: str) -> None:
    """By hand: "|" stands where a sentence begins."""
    parts = marked.split("|")
    text = "".join(parts)
    begins = {sum(map(len, parts[:i])) for i in range(1, len(parts))} - {0}
    assert {high for _, high in true_boundaries(text)} == begins


def main() -> None:
    print("| | " + " | ".join([*GENRES, "all"]) + " |")
    print("|--" * (len(GENRES) + 2) + "|")
    for kind in KINDS:
        each = [counts(kind, genre) for genre in GENRES]
        print(f"| {kind} | " + " | ".join(f"{c.f1:.3f}" for c in [*each, sum(each, Counts())]) + " |")
    print("| sentences | " + " | ".join(str(sum(len(t) for _, t in corpus(genre))) for genre in GENRES) + " | |")


if __name__ == "__main__":
    main()
