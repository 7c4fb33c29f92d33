"""Sentences as spans of token ids (METHOD §1): the table of a tokenizer, and the spans of responses.

The rules are an automaton over kinds of characters. It runs once over the text of every vocabulary entry,
from every state; entries that act alike form a class, and the classes make the `SentenceTable` that the
kernel walks through. So
the cut made from token ids is the cut of the text, however it was tokenised, but for one thing: a boundary
    that falls
inside a token moves to the token's end.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from aapa.kernels import SentenceTable, segment_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Granularity = Literal["sentence", "response"]

# Words whose period does not end a sentence. Single letters (initials, "e.g.") need no entry.
_ABBREVIATED = """
Mr Mrs Ms Dr Prof Sr Jr St Mt Ph Gen Col Lt Sgt Capt Rev Hon Gov Sen Jan Feb Aug Sept Oct Nov Dec
vs cf viz approx Fig Figs fig figs Eq Eqs eq eqs pp vol Vol
"""
ABBREVIATIONS = frozenset(_ABBREVIATED.split())

# Kinds of characters:
#   S  blank                          P  full stop, ellipsis
#   N  line break                     E  ! or ?
#   D  digits                         J  stop of a script that puts no blank behind it
#   L  lower-case letter              Q  closing quote or bracket, markup
#   U  other letter                   K  punctuation after which a sentence goes on
#   I  the word "I"                   O  anything else
#   A  a whole abbreviation           C  rest of a character begun in an earlier token
#                                     X  end of sequence
KINDS = "SNDLUIAPEJQKOCX"
_PUNCTUATION = {
    **dict.fromkeys("\n\r\v\f\x85\u2028\u2029", "N"),
    **dict.fromkeys(".…．", "P"),
    **dict.fromkeys("!?", "E"),
    **dict.fromkeys("。！？｡।॥؟۔", "J"),
    **dict.fromkeys("\"')]}”’»›」』）】》〉〕*_`~", "Q"),
    **dict.fromkeys(",;:/\\@&%#+=|<>-–—，、；：", "K"),
}
_PIECE = re.compile(r"[^\W\d_]+|\d+|.", re.DOTALL)

# States, by what was read last:
#   s  nothing of this sentence yet   n  digits that open the sentence, as in "1. item"
#   g  a gap between words            p  a stop of kind P or E
#   l  a word of one letter           c  a stop of kind J, or closing quotes after a stop
#   w  a word                         b  a line break
#   a  an abbreviation                z  blanks after p, c or b
STATES = "sglwanpcbz"
# In these the sentence may end behind the character just read.
_CLOSABLE = "pcb"
# State after a character, by state before it and kind. "!": a sentence begins at the last place where the
# previous one may end, and the character acts as it does in state s.
#           SNDLUIAPEJQKOCX
_RULES = {
    "s": "ssnllwappcggggb",
    "g": "gbwllwappcggggb",
    "l": "gbwwwwwgpcwgggb",
    "w": "gbwwwwwppcwgggb",
    "a": "gbwwwwwgpcwgggb",
    "n": "gbnwwwwgpcwgggb",
    "p": "zbww!!!ppccg!pb",
    "c": "zb!!!!!ccccg!cb",
    "b": "zb!!!!!!!!!!!bb",
    "z": "zb!!!!!!!!!!!!b",
}


def build_sentence_table(
    tokenizer: PreTrainedTokenizerFast, *, eos_ids: Collection[int] = (), vocab_size: int | None = None
) -> SentenceTable:
    """Segmentation table of a tokenizer.

    A stop (. ! ? … and their forms in other scripts) or a line break closes a sentence. Closing quotes and
    brackets directly after a stop, line breaks and the end of sequence join the sentence before them; blanks
    join the one after. Periods in numbers, domain names, initials and list numbers do not close, nor do those
    of abbreviations that are one token. A stop whose bytes are spread over tokens is not seen.

    Args:
        tokenizer: byte-level or metaspace BPE/unigram, or any whose vocabulary entries are plain text.
        eos_ids: end-of-sequence ids beside the tokenizer's own.
        vocab_size: rows of the table, where the model has more ids than the tokenizer; these have no text.

    Raises:
        ValueError: a tokenizer without access to its vocabulary, or a `vocab_size` smaller than it.
    """
    texts = vocabulary_bytes(tokenizer)
    size = len(texts) if vocab_size is None else vocab_size
    if size < len(texts):
        raise ValueError(f"vocab_size: expected at least {len(texts)}, got {vocab_size}")
    ends = {*eos_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    kinds = ["X" if i in ends else character_kinds(text) for i, text in enumerate(texts)]
    kinds += [""] * (size - len(texts))
    classes: dict[tuple[tuple[int, bool, bool], ...], int] = {}
    class_V = [classes.setdefault(_token_rule(k), len(classes)) for k in kinds]
    next_CQ, cut_CQ, mark_CQ = (torch.tensor([[step[i] for step in rule] for rule in classes]) for i in range(3))
    return SentenceTable(
        class_V=torch.tensor(class_V, dtype=torch.int32),
        next_CQ=next_CQ.byte(),
        cut_CQ=cut_CQ,
        mark_CQ=mark_CQ,
    )


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


def refine(cu_sents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Spans of a response cut further where a token mask changes, and whether each lies inside the mask.

    Args:
        cu_sents: int32 [K + 1] offsets in the response.
        mask: [R] bool.

    Returns:
        (int32 [K' + 1] offsets, [K'] bool).
    """
    changes = (mask[1:] != mask[:-1]).nonzero()[:, 0].int() + 1
    finer = torch.cat([cu_sents, changes]).unique()
    return finer, mask[finer[:-1].long()]


def anchored_spans(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    table: SentenceTable,
    granularity: Granularity = "sentence",
    delimiters: tuple[int, int] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Spans of each response, and which of them the anchor speaks of.

    Args:
        prompts, responses: token ids.
        delimiters: ids of an opening and a closing token; what lies between them is not anchored. None: all is.

    Returns:
        (int32 [K_i + 1] offsets, [K_i] bool) of each response.
    """
    cuts = spans(responses, table, granularity)
    if delimiters is None:
        return cuts, [torch.ones(len(cut) - 1, dtype=torch.bool) for cut in cuts]
    refined = [
        refine(cut, outside(prompt, response, *delimiters))
        for cut, prompt, response in zip(cuts, prompts, responses, strict=True)
    ]
    return [cut for cut, _ in refined], [kept for _, kept in refined]


def end_ids(table: SentenceTable) -> frozenset[int]:
    """Ids that the table takes for an end of sequence: they close a sentence and never begin one."""
    start, closed = STATES.index("s"), STATES.index("b")
    ends_C = (table.next_CQ[:, start] == closed) & ~table.cut_CQ[:, closed]
    return frozenset(ends_C[table.class_V.long()].nonzero()[:, 0].tolist())


def character_kinds(text: bytes) -> str:
    """Kinds of the characters of a vocabulary entry; its UTF-8 may begin or end inside a character."""
    rest = text.lstrip(bytes(range(0x80, 0xC0)))
    kinds = "C" if len(rest) < len(text) else ""
    return kinds + "".join(_piece_kinds(piece) for piece in _PIECE.findall(rest.decode("utf-8", errors="replace")))


def _piece_kinds(piece: str) -> str:
    first = piece[0]
    if first.isalpha():
        if piece in ABBREVIATIONS or piece == "I":
            return "I" if piece == "I" else "A"
        # What a word of many letters does is decided by its first letter and by its having a second one.
        return ("L" if first.islower() else "U") + "L" * (len(piece) > 1)
    if first.isdecimal():
        return "D"
    if first in _PUNCTUATION:
        return _PUNCTUATION[first]
    if first.isspace():
        return "S"
    # Combining marks, joiners and variation selectors are part of the character before them.
    return "" if unicodedata.category(first) in ("Mn", "Mc", "Me", "Cf") else "O"


@functools.cache
def _token_rule(kinds: str) -> tuple[tuple[int, bool, bool], ...]:
    """(next state, cut, mark) from every state, as in `SentenceTable`, of a token with these characters."""
    return tuple(_walk(kinds, state) for state in STATES)


def _walk(kinds: str, state: str) -> tuple[int, bool, bool]:
    cut = mark = inside = False
    for kind in kinds:
        after = _RULES[state][KINDS.index(kind)]
        if after == "!":
            # A mark in this token means a boundary in it, which moves to the token's end.
            inside, cut = inside or mark, cut or not mark
            after = _RULES["s"][KINDS.index(kind)]
        mark = mark or after in _CLOSABLE
        state = after
    if inside:
        return STATES.index("b"), cut, True
    return STATES.index(state), cut, mark and state in _CLOSABLE + "z"


def vocabulary_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """UTF-8 text that each vocabulary entry stands for; it may begin or end inside a character."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"tokenizer: expected a fast tokenizer, got {type(tokenizer).__name__}")
    parts = {name for part in (backend.pre_tokenizer, backend.decoder) for name in _part_names(part)}
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    entries = {index: entry for entry, index in tokenizer.get_vocab().items()}
    bytes_of = _byte_alphabet() if "ByteLevel" in parts else None
    texts = []
    for index in range(max(entries, default=-1) + 1):
        entry = entries.get(index, "")
        if index in added:
            texts.append(added[index].encode())
        elif bytes_of is not None:
            texts.append(b"".join(bytes_of.get(character, character.encode()) for character in entry))
        elif "ByteFallback" in parts and re.fullmatch(r"<0x[0-9A-F]{2}>", entry):
            texts.append(bytes.fromhex(entry[3:5]))
        else:
            # Metaspace and its older spelling as a Replace decoder write a blank as U+2581.
            texts.append(entry.replace("▁", " ").encode())
    return texts


def _part_names(part: Any) -> list[str]:
    """Types of a pre-tokenizer or decoder and of those inside it, from its own JSON form."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    inner = [*state.get("pretokenizers", []), *state.get("decoders", [])]
    return [name for name in (state.get("type"), *(part.get("type") for part in inner)) if name]


def _byte_alphabet() -> dict[str, bytes]:
    """Byte that each character of a byte-level vocabulary stands for; GPT-2's table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    characters = [*map(chr, printable), *(chr(0x100 + i) for i in range(len(others)))]
    return {c: bytes([byte]) for c, byte in zip(characters, [*printable, *others], strict=True)}
