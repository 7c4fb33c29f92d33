"""Damaged expert responses: negatives that no policy needs to have written (METHOD §2).

Every corruption works on token ids by sentence spans. Only sentences that are changed are decoded and encoded
again, so the rest keeps its tokens. The result says of every token whether it was damaged.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from aapa.kernels import SentenceTable
from aapa.sentences import anchored_spans, end_ids

CORRUPTIONS = (
    "repetition",
    "truncation",
    "shuffled_words",
    "substituted_words",
    "duplicated_words",
    "wrong_case",
    "other_topic",
    "going_on",
)

# Leading blanks with a list marker; the words; closing punctuation with blanks.
_SENTENCE = re.compile(r"(\s*(?:[-*•+]\s+|\d+[.)]\s+)?)(.*?)([^\w]*)", re.DOTALL)


@dataclass(frozen=True)
class SentenceText:
    """A sentence taken apart; `lead + body + trail` is its text."""

    lead: str
    body: str
    trail: str

    @classmethod
    def of(cls, text: str) -> SentenceText:
        match = _SENTENCE.fullmatch(text)
        assert match is not None, "the pattern matches every text"
        return cls(*match.groups())

    def words(self) -> list[str]:
        """Words of the body; single characters where it has no blanks and is not ASCII, as in Chinese."""
        words = self.body.split()
        return list(self.body) if len(words) == 1 and not self.body.isascii() else words

    def joined(self, words: Sequence[str]) -> str:
        blank = "" if len(self.body.split()) == 1 and not self.body.isascii() else " "
        return blank.join(words)


@dataclass(frozen=True)
class Damaged:
    """A damaged response: its ids, whether each token was damaged, and how."""

    ids: list[int]
    damaged: list[bool]
    kind: str

    def negatives(self, cu_sents: Tensor) -> list[bool]:
        """Of each span of a segmentation of `ids`, whether most of its tokens were damaged."""
        bounds = cu_sents.tolist()
        return [2 * sum(self.damaged[begin:end]) > end - begin for begin, end in pairwise(bounds)]


class Corruptor:
    """Makes damaged versions of expert responses.

    Args:
        responses: the expert responses, token ids.
        owners: prompt of each response; "other" responses are those of another prompt.
        table: segmentation table of the tokenizer.
        encode, decode: text to ids without special tokens, and back.
        prompts: token ids of each response's prompt; needed beside `delimiters`.
        delimiters: ids of an opening and a closing token; what lies between them stays as it is.
    """

    def __init__(
        self,
        responses: Sequence[Sequence[int]],
        owners: Sequence[int],
        table: SentenceTable,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        prompts: Sequence[Sequence[int]] = (),
        delimiters: tuple[int, int] | None = None,
    ) -> None:
        self.encode, self.decode, self.owners = encode, decode, list(owners)
        ends = end_ids(table)
        self.endings: list[list[int]] = []
        self.sentences: list[list[list[int]]] = []
        # Places of the sentences that may be damaged, and their texts.
        self.places: list[list[int]] = []
        for response, cu_sents, kept in zip(
            responses, *anchored_spans(prompts or responses, responses, table, "sentence", delimiters), strict=True
        ):
            length = len(response)
            while length and response[length - 1] in ends:
                length -= 1
            bounds = pairwise(min(bound, length) for bound in cu_sents.tolist())
            pieces = [(list(response[a:b]), open) for (a, b), open in zip(bounds, kept.tolist(), strict=True) if b > a]
            self.sentences.append([ids for ids, _ in pieces])
            self.places.append([place for place, (_, open) in enumerate(pieces) if open])
            self.endings.append(list(response[length:]))
        self.texts = [
            [SentenceText.of(decode(pieces[place])) for place in places]
            for pieces, places in zip(self.sentences, self.places, strict=True)
        ]

    def corrupt(self, index: int, kind: str, rng: random.Random) -> Damaged | None:
        """A damaged version of response `index`; None where this kind has nothing to damage."""
        if not any(text.body for text in self.texts[index]):
            return None
        if kind == "repetition":
            parts = self._repeat(index, rng)
        elif kind == "going_on":
            parts = self._go_on(index, rng)
        elif kind == "truncation" and rng.random() < 0.5:
            return self._break_off(index, rng)
        else:
            parts = self._damage_words(index, kind, rng)
        if not any(damaged and ids for ids, damaged in parts):
            return None
        ending = [(self.endings[index], parts[-1][1])]
        ids = [token for part, _ in parts + ending for token in part]
        return Damaged(ids, [damaged for part, damaged in parts + ending for _ in part], kind)

    def _damage_words(self, index: int, kind: str, rng: random.Random) -> list[tuple[list[int], bool]]:
        """Damages the words of some sentences."""
        parts = [(ids, False) for ids in self.sentences[index]]
        places = self.places[index]
        for k in rng.sample(range(len(places)), rng.randint(1, len(places))):
            text = self.texts[index][k]
            body = self._damaged_body(text, index, kind, rng)
            ids = self._written(text.lead + body + text.trail)
            if ids and body != text.body:
                parts[places[k]] = (ids, True)
        return parts

    def _damaged_body(self, text: SentenceText, index: int, kind: str, rng: random.Random) -> str:
        words = text.words()
        if kind == "other_topic":
            other = self._other(index, rng)
            return other.body if other else text.body
        if kind == "wrong_case":
            swapped = text.body[:1].swapcase() + text.body[1:]
            return rng.choice([swapped, text.joined([word.capitalize() for word in words]), text.body.upper()])
        if len(words) < 2:
            return text.body
        if kind == "truncation":
            dropped = max(1, len(words) // 3)
            words = words[:-dropped] if rng.random() < 0.5 else words[dropped:]
        elif kind == "shuffled_words":
            rng.shuffle(words)
        elif kind == "duplicated_words":
            doubled = set(rng.sample(range(len(words)), rng.randint(1, max(1, len(words) // 2))))
            words = [word for i, word in enumerate(words) for _ in range(1 + (i in doubled))]
        elif kind == "substituted_words":
            for i in rng.sample(range(len(words)), rng.randint(1, max(1, len(words) // 3))):
                other = self._other(index, rng)
                words[i] = rng.choice(other.words()) if other else words[i]
        else:
            raise ValueError(f"kind: expected one of {', '.join(CORRUPTIONS)}, got {kind!r}")
        return text.joined(words)

    def _repeat(self, index: int, rng: random.Random) -> list[tuple[list[int], bool]]:
        """Says sentences again, somewhere after they were said."""
        own, places = self.texts[index], self.places[index]
        repeats: list[list[tuple[list[int], bool]]] = [[] for _ in self.sentences[index]]
        for _ in range(rng.randint(1, 3)):
            k = rng.choice([k for k, text in enumerate(own) if text.body])
            after = rng.randrange(k, len(own))
            repeats[places[after]].append((self._placed(index, own[k], last=after == len(own) - 1), True))
        parts = []
        for ids, again in zip(self.sentences[index], repeats, strict=True):
            parts += [(ids, False), *again]
        return parts

    def _go_on(self, index: int, rng: random.Random) -> list[tuple[list[int], bool]]:
        """Goes on after the end: with a sentence that belongs before it, or with sentences from elsewhere."""
        parts = [(ids, False) for ids in self.sentences[index]]
        places = self.places[index]
        if len(places) > 2 and rng.random() < 0.5:
            k = rng.randrange(1, len(places) - 1)
            moved = self._placed(index, self.texts[index][k], last=True)
            return [*parts[: places[k]], *parts[places[k] + 1 :], (moved, True)]
        for _ in range(rng.randint(1, 3)):
            added = self._other(index, rng) if rng.random() < 0.5 else rng.choice(self.texts[index])
            if added and added.body:
                parts.append((self._placed(index, added, last=True), True))
        return parts

    def _break_off(self, index: int, rng: random.Random) -> Damaged | None:
        """Stops in the middle of a sentence, without an end."""
        pieces, places = self.sentences[index], self.places[index]
        k = places[rng.randrange(len(places))]
        if len(pieces[k]) < 3:
            return None
        kept = rng.randint(1, max(1, 2 * len(pieces[k]) // 3))
        before = [token for piece in pieces[:k] for token in piece]
        return Damaged(before + pieces[k][:kept], [False] * len(before) + [True] * kept, "truncation")

    def _placed(self, index: int, text: SentenceText, last: bool) -> list[int]:
        """Ids of a sentence put between the response's own or behind the last, set out as they are."""
        own = self.texts[index]
        lead = own[1].lead if len(own) > 1 else "" if "\n" in own[0].trail else " "
        if not last:
            return self._written(lead + text.body + own[0].trail)
        broken = len(own) > 1 and "\n" in own[0].trail and "\n" not in own[-1].trail
        return self._written(("\n" if broken else "") + lead + text.body + own[-1].trail)

    def _written(self, text: str) -> list[int]:
        """Ids of a text; none where the vocabulary has no ids for all of it, as for capitals it never met."""
        ids = self.encode(text)
        return ids if self.decode(ids).strip() == text.strip() else []

    def _other(self, index: int, rng: random.Random) -> SentenceText | None:
        """A sentence of another prompt's response; None where there is none."""
        for _ in range(20):
            other = rng.randrange(len(self.texts))
            if self.owners[other] != self.owners[index] and self.texts[other]:
                text = rng.choice(self.texts[other])
                if text.body:
                    return text
        return None
