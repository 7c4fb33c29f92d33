"""Sentences as spans of token ids (METHOD §1): the table of a tokenizer, and the spans of responses.

The rules are an automaton over kinds of characters, in `aapa/sentence_table.py`. It runs once over the text of every
vocabulary entry, from every state; entries that act alike form a class, and the classes make the `SentenceTable` that
the kernel walks through. So the cut made from token ids is the cut of the text, however it was tokenised, but for one
thing: a boundary that falls inside a token moves to the token's end.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aapa.kernels import SentenceTable, segment_sentences
from aapa.sentence_table import CLOSED, KINDS, START, State, Step, character_kinds, step

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Granularity = Literal["sentence", "response"]

# Pre-tokenizers behind which nothing tells where blanks were.
_DROP_BLANKS = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"})


def build_sentence_table(
    tokenizer: PreTrainedTokenizerFast, *, eos_ids: Collection[int] = (), vocab_size: int | None = None
) -> SentenceTable:
    """Segmentation table of a tokenizer.

    A stop (. ! ? and their forms in other scripts, … before a capital) or an empty line closes a sentence, and so does
    a line break before or behind a heading, list item, table row, code block or displayed formula. None closes in a
    quotation, in brackets, code or a formula, and no period of a number, name of a domain, initial, abbreviation or
    list number does. Closing quotes and brackets directly after a stop, line breaks and the end of sequence join the
    sentence before them; blanks join the one after. docs/segmentation.md says more.

    Args:
        tokenizer: byte-level or metaspace BPE or unigram, or any whose vocabulary entries are plain text.
        eos_ids: end-of-sequence ids beside the tokenizer's own.
        vocab_size: rows of the table, where the model has more ids than the tokenizer; these have no text.

    Raises:
        ValueError: a tokenizer without access to its vocabulary, or whose entries do not spell the text, such as
            WordPiece; a `vocab_size` smaller than the vocabulary.
    """
    texts = vocabulary_bytes(tokenizer)
    size = len(texts) if vocab_size is None else vocab_size
    if size < len(texts):
        raise ValueError(f"vocab_size: expected at least {len(texts)}, got {vocab_size}")
    ends = {*eos_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    kinds = ["■" if i in ends else character_kinds(text) for i, text in enumerate(texts)]
    class_V, next_CQ, cut_CQ, mark_CQ = token_rules(kinds + [""] * (size - len(texts)))
    return SentenceTable(
        class_V=torch.tensor(class_V, dtype=torch.int32),
        next_CQ=torch.from_numpy(next_CQ).byte(),
        cut_CQ=torch.from_numpy(cut_CQ),
        mark_CQ=torch.from_numpy(mark_CQ),
    )


def moved(state: State) -> State:
    """The state behind a token in which a boundary lies. Half-read words and signs are forgotten here."""
    place = state.place
    if place.startswith("word:") or place == "letter":
        place = "word"
    elif place.startswith("fence") and place[6:] not in ("", "open", "info", "line"):
        place = place[:6]
    elif place.startswith("math") and place != "mathend":
        place = place[:5]
    elif place.startswith("digits"):
        place = "digits1"
    return state._replace(place=place, forced=True)


class Automaton(NamedTuple):
    """The states by number, 0 at the start of a sequence, and what each kind of character does to them.

    Attributes:
        number_of: number of each reachable state; those that act alike share one.
        next_KQ, cut_KQ, mark_KQ: as in `SentenceTable`, for characters of kind K (a place in `KINDS`).
        waits_Q: whether there is a mark that a later character may cut at.
        moved_Q: number of the state behind a token in which a boundary lies.
    """

    number_of: dict[State, int]
    next_KQ: NDArray[np.intp]
    cut_KQ: NDArray[np.bool_]
    mark_KQ: NDArray[np.bool_]
    waits_Q: NDArray[np.bool_]
    moved_Q: NDArray[np.intp]


@functools.cache
def automaton() -> Automaton:
    """All that can be reached from the start of a sequence."""
    steps: dict[State, list[Step]] = {START: []}
    for state in (queue := [START]):
        steps[state] = [step(state, kind) for kind in KINDS]
        for after, _, _ in steps[state]:
            for reached in (after, moved(after)):
                if reached not in steps:
                    steps[reached] = []
                    queue.append(reached)
    numbers: dict[State, int] = dict.fromkeys(steps, 0)
    while True:
        # States with one number so far that do not act alike get different ones.
        alike: dict[Any, int] = {}
        refined = {}
        for state, moves in steps.items():
            acts = [(numbers[after], cut, mark) for after, cut, mark in moves]
            waits = bool(state.pending) or state.forced
            key = (numbers[state], waits, numbers[moved(state)], *acts)
            refined[state] = alike.setdefault(key, len(alike))
        if len(alike) == len(set(numbers.values())):
            break
        numbers = refined
    examples = {number: state for state, number in reversed(numbers.items())}
    states = [examples[number] for number in range(len(examples))]
    moves_QK = [steps[state] for state in states]
    return Automaton(
        numbers,
        np.array([[numbers[move.after] for move in moves] for moves in moves_QK]).T,
        np.array([[move.cut for move in moves] for moves in moves_QK]).T,
        np.array([[move.mark for move in moves] for moves in moves_QK]).T,
        np.array([bool(state.pending) or state.forced for state in states]),
        np.array([numbers[moved(state)] for state in states]),
    )


# What characters do, from every state: the state reached, plus whether there was a cut at the mark from before
# them, whether the mark lies behind one of them, and whether there is a boundary among them.
_CUT, _INSIDE, _BOUNDARY = 1 << 8, 1 << 9, 1 << 10


def token_rules(entries: Iterable[str]) -> tuple[list[int], NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Class of each entry, given as kinds of characters, and (next, cut, mark) of each class from every state."""
    machine = automaton()
    effects = [np.arange(len(machine.waits_Q))]
    numbers = {effects[0].tobytes(): 0}
    longer: dict[tuple[int, str], int] = {}
    classes: dict[bytes, int] = {}
    rules: list[tuple[NDArray[Any], ...]] = []
    class_of: dict[int, int] = {}
    result = []
    for kinds in entries:
        effect = 0
        for kind in kinds:
            # Few effects differ, so nearly every step has been taken before.
            if (effect, kind) not in longer:
                behind = _extend(effects[effect], KINDS.index(kind), machine)
                longer[effect, kind] = numbers.setdefault(behind.tobytes(), len(effects))
                if longer[effect, kind] == len(effects):
                    effects.append(behind)
            effect = longer[effect, kind]
        if effect not in class_of:
            rule = _rule(effects[effect], machine)
            class_of[effect] = classes.setdefault(b"".join(part.tobytes() for part in rule), len(classes))
            if class_of[effect] == len(rules):
                rules.append(rule)
        result.append(class_of[effect])
    next_CQ, cut_CQ, mark_CQ = (np.stack(parts) for parts in zip(*rules, strict=True))
    return result, next_CQ, cut_CQ, mark_CQ


def _extend(effect_Q: NDArray[np.intp], kind: int, machine: Automaton) -> NDArray[np.intp]:
    """The effect of some characters and one more."""
    state_Q = effect_Q & 0xFF
    inside_Q = (effect_Q & _INSIDE) != 0
    cut_Q = machine.cut_KQ[kind, state_Q]
    next_Q = machine.next_KQ[kind, state_Q]
    inside_behind_Q = (inside_Q | machine.mark_KQ[kind, state_Q]) & machine.waits_Q[next_Q]
    return (
        next_Q
        | (effect_Q & (_CUT | _BOUNDARY))
        | np.where(cut_Q, np.where(inside_Q, _BOUNDARY, _CUT), 0)
        | np.where(inside_behind_Q, _INSIDE, 0)
    )


def _rule(effect_Q: NDArray[np.intp], machine: Automaton) -> tuple[NDArray[Any], ...]:
    """What a token with such characters does: a boundary or a mark in it moves to its end."""
    boundary_Q = (effect_Q & _BOUNDARY) != 0
    next_Q = np.where(boundary_Q, machine.moved_Q[effect_Q & 0xFF], effect_Q & 0xFF)
    return next_Q, (effect_Q & _CUT) != 0, boundary_Q | ((effect_Q & _INSIDE) != 0)


def segment(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable, granularity: Granularity = "sentence") -> Tensor:
    """Spans of packed responses as offsets, int32 [S + 1]; as whole responses, empty ones have none."""
    if granularity == "sentence":
        return segment_sentences(token_T, cu_seqlens, table)
    if granularity != "response":
        raise ValueError(f"granularity: expected sentence or response, got {granularity!r}")
    return torch.unique_consecutive(cu_seqlens).to(token_T.device, torch.int32)


def spans(
    responses: Sequence[Sequence[int]], table: SentenceTable, granularity: Granularity = "sentence"
) -> list[Tensor]:
    """Spans of each response as offsets inside it, int32 [K_i + 1]; [0] for an empty response."""
    lengths = torch.tensor([0, *map(len, responses)])
    cu_seqlens = lengths.cumsum(0).int()
    token_T = torch.tensor([token for response in responses for token in response], dtype=torch.int64)
    cu_sents = segment(token_T, cu_seqlens, table, granularity)
    bounds = torch.searchsorted(cu_sents, cu_seqlens).tolist()
    offsets = cu_seqlens.tolist()
    return [
        cu_sents[first : last + 1] - offset
        for first, last, offset in zip(bounds[:-1], bounds[1:], offsets[:-1], strict=True)
    ]


def outside(prompt: Sequence[int], response: Sequence[int], opening: int, closing: int) -> Tensor:
    """[R] bool, response tokens that lie outside of a delimited part (METHOD §1, `anchor.span`).

    The delimiters themselves are inside. A part that the prompt opens goes on in the response; one that is never closed
    reaches to the end.

    Args:
        prompt, response: token ids.
        opening, closing: ids of the delimiters, such as those of "<think>" and "</think>".
    """
    inside = False
    for token in prompt:
        inside = token == opening or (inside and token != closing)
    kept = []
    for token in response:
        inside = inside or token == opening
        kept.append(not inside and token != closing)
        inside = inside and token != closing
    return torch.tensor(kept, dtype=torch.bool)


def anchored_spans(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    table: SentenceTable,
    granularity: Granularity = "sentence",
    delimiters: tuple[int, int] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Spans of each response, and which of them the anchor speaks of.

    What lies between delimiters is not anchored, and each stretch between two delimited parts is cut as if it were a
    response of its own: a quotation that is left open in a thought leaves the answer as it is. A stretch of blanks,
    or of an end of sequence alone, is no sentence and not anchored.

    Args:
        prompts, responses: token ids.
        delimiters: ids of an opening and a closing token; None: all is anchored.

    Returns:
        (int32 [K_i + 1] offsets, [K_i] bool) of each response.
    """
    if delimiters is None:
        cuts = spans(responses, table, granularity)
        return cuts, [torch.ones(len(cut) - 1, dtype=torch.bool) for cut in cuts]
    empty = blank_ids(table) | end_ids(table)
    stretches: list[list[int]] = []
    owners: list[tuple[int, bool]] = []
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        place = 0
        for free, run in groupby(outside(prompt, response, *delimiters).tolist()):
            stretch = list(response[place : (place := place + len(list(run)))])
            stretches.append(stretch)
            owners.append((index, free and not empty.issuperset(stretch)))
    offsets: list[list[int]] = [[0] for _ in responses]
    kept: list[list[bool]] = [[] for _ in responses]
    for (index, anchored), cut in zip(owners, spans(stretches, table, granularity), strict=True):
        first = offsets[index][-1]
        offsets[index] += [first + bound for bound in cut.tolist()[1:]]
        kept[index] += [anchored] * (len(cut) - 1)
    return [torch.tensor(o, dtype=torch.int32) for o in offsets], [torch.tensor(k, dtype=torch.bool) for k in kept]


def blank_ids(table: SentenceTable) -> frozenset[int]:
    """Ids that leave the automaton where it begins: blanks, line breaks, and rests of characters."""
    start = automaton().number_of[START]
    blank_C = (table.next_CQ[:, start] == start) & ~table.cut_CQ[:, start]
    return frozenset(blank_C[table.class_V.long()].nonzero()[:, 0].tolist())


def end_ids(table: SentenceTable) -> frozenset[int]:
    """Ids that the table takes for an end of sequence: they close a sentence and never begin one."""
    start, closed = 0, automaton().number_of[CLOSED]
    ends_C = (table.next_CQ[:, start] == closed) & ~table.cut_CQ[:, closed]
    return frozenset(ends_C[table.class_V.long()].nonzero()[:, 0].tolist())


def vocabulary_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """UTF-8 text that each vocabulary entry stands for; it may begin or end inside a character.

    Raises:
        ValueError: a tokenizer whose entries do not spell the text, one behind the other.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"tokenizer: expected a fast tokenizer, got {type(tokenizer).__name__}")
    parts = [*_parts(backend.normalizer), *_parts(backend.pre_tokenizer), *_parts(backend.decoder)]
    names = {part["type"] for part in parts}
    bytes_of = byte_alphabet() if "ByteLevel" in names else None
    # What a blank is written as, also where a Replace decoder does what Metaspace does.
    blanks = str.maketrans({"▁": " ", **{part["replacement"]: " " for part in parts if part["type"] == "Metaspace"}})
    entries = {index: entry for entry, index in tokenizer.get_vocab().items()}
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    by_byte = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    if "ByteFallback" not in names and not by_byte.keys() <= set(entries.values()):
        by_byte = {}
    texts = []
    for index in range(max(entries, default=-1) + 1):
        entry = entries.get(index, "")
        if index in added:
            texts.append(added[index].encode())
        elif entry in by_byte:
            texts.append(by_byte[entry])
        elif bytes_of is not None:
            texts.append(b"".join(bytes_of.get(character, character.encode()) for character in entry))
        else:
            texts.append(entry.translate(blanks).encode())
    if problem := _other_spelling(backend, parts, {i: text for i, text in enumerate(texts) if text and i not in added}):
        raise ValueError(
            "tokenizer: expected vocabulary entries that spell the text one behind the other (byte-level, or with ▁ "
            f"for blanks), got {problem}"
        )
    return texts


def _other_spelling(backend: Tokenizer, parts: list[dict[str, Any]], texts: Mapping[int, bytes]) -> str | None:
    """Why the entries of a tokenizer do not spell the text, if so."""
    model = backend.model
    affixes = [getattr(model, name, None) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
    if type(model).__name__ == "WordPiece" or any(affixes):
        return f"a {type(model).__name__} model that marks the parts of words"
    spelled = any(part["type"] in ("ByteLevel", "Metaspace") for part in parts)
    for part in parts:
        # Words that were split at blanks get their marks back from what comes behind; pieces of words get too many.
        restored = spelled and part["type"] == "WhitespaceSplit"
        if part.get("behavior") == "Removed" or (part["type"] in _DROP_BLANKS and not restored):
            return f"the pre-tokenizer {part['type']}, which drops characters"
    if backend.normalizer is not None and not any(part["type"] == "ByteLevel" for part in _parts(backend.normalizer)):
        kept = unicodedata.normalize("NFC", backend.normalizer.normalize_str("É")).strip("▁ ")
        if kept != "É":
            return f"a normalizer that turns É into {kept}"
    if backend.decoder is not None:
        whole = [(i, text.decode()) for i, text in texts.items() if text.decode(errors="replace").encode() == text]
        for (first, left), (second, right) in pairwise(whole[:: len(whole) // 128 + 1]):
            decoded = backend.decode([first, second], skip_special_tokens=False)
            if decoded.strip(" ") != (left + right).strip(" "):
                return f"a decoder that makes {decoded!r} of {left!r} and {right!r}"
    return None


def _parts(part: Any) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder and those inside it, as they describe themselves."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    inner = [part for key in ("normalizers", "pretokenizers", "decoders") for part in state.get(key, [])]
    return [part for part in (state, *inner) if "type" in part]


def byte_alphabet() -> dict[str, bytes]:
    """Byte that each character of a byte-level vocabulary stands for; GPT-2's table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    characters = [*map(chr, printable), *(chr(0x100 + i) for i in range(len(others)))]
    return {c: bytes([byte]) for c, byte in zip(characters, [*printable, *others], strict=True)}
