"""Segmentation tables: hand-made cases, and the cut of tokens against the cut of characters."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.kernels import SentenceTable
from aapa.sentences import build_sentence_table, end_ids, segment, spans, vocabulary_bytes

# Text → its sentences, joined with "|".
CASES = [
    "It is here.| Next one.",
    "What?| Yes!| Really?!| Well...| no",
    "It is 3.14 now.| Next.",
    "See example.com for more.| Yes.",
    "Mr. Smith met Dr. Who.| They left.",
    "J. Smith wrote it, e.g. here.| See i.e. that.",
    "So do I.| Lower case.| and more.",
    "1. First thing\n|2. Second thing.\n\n|Third",
    "- one.\n|- two.\n|- three.",
    "One line\n| and another\n|last",
    'He said "stop."| Then (ok.)| "Go on!"| Done.',
    "**Bold.**| Next.",
    "end.|The next.",
    "wait., he said.",
    "a stop at the end. ",
    " \n Leading blanks.| Next.",
    "One.  \n \n|Two.",
    "Great.| 😀 Next.| Last 😀😀",
    "你好。|我是学生！|好吗？”|他说。",
    "नमस्ते।| यह है।",
    "",
    ".",
    "...",
    "\n\n",
    "word",
]


@dataclass(frozen=True)
class Language:
    """A byte-level tokenizer trained on some texts, with its table."""

    tokenizer: PreTrainedTokenizerFast
    table: SentenceTable
    texts: list[bytes]

    @classmethod
    def of(cls, texts: Iterable[str], size: int, regex: bool = True) -> "Language":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
        return cls(tokenizer, build_sentence_table(tokenizer), vocabulary_bytes(tokenizer))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def sentences(self, ids: list[int]) -> list[bytes]:
        (cu_sents,) = spans([ids], self.table)
        return [b"".join(self.texts[i] for i in ids[a:b]) for a, b in pairwise(cu_sents.tolist())]


@cache
def language() -> Language:
    return Language.of([case.replace("|", "") for case in CASES] * 4, 800)


@cache
def abstract(size: int) -> Language:
    """Of single bytes at size 258, of merged ones above."""
    corpus = [
        'ab. A! b?\n"I" (a) 3.3, b-a. ab?" A',
        "aaa bbb. AAA.\n\nba ab ba",
        "!? !? ...\n",
        '." ." ?)',
    ] * 5
    return Language.of(corpus, size)


@cache
def emoji(regex: bool) -> Language:
    """These share their first three bytes, so merges end inside them."""
    return Language.of([f"a. {face}b!{face}" for face in "😀😂😅😄😎😍😊😉"] * 9 + ["é. é", "。😀"], 300, regex)


@pytest.mark.parametrize("case", CASES)
def test_hand_made_cases(case: str) -> None:
    ids = language().encode(case.replace("|", ""))
    expected = [part.encode() for part in case.split("|") if part]
    assert language().sentences(ids) == expected
    # The end of sequence belongs to the last sentence, or is one where there is nothing else.
    expected = [*expected[:-1], (expected[-1] if expected else b"") + b"<eos>"]
    assert language().sentences([*ids, 1]) == expected


def test_a_boundary_inside_a_token_moves_to_its_end() -> None:
    whole = Tokenizer(models.WordLevel({"one": 0, ". two": 1, " three": 2, ".": 3, '."\n': 4, "<eos>": 5}, "one"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>")
    table = build_sentence_table(tokenizer)
    # "one. two three." has a boundary behind "one.", in the middle of a token.
    assert spans([[0, 1, 2, 3]], table)[0].tolist() == [0, 2, 4]
    assert spans([[0, 4, 2, 3, 5]], table)[0].tolist() == [0, 2, 5]
    assert spans([[0, 1, 5]], table)[0].tolist() == [0, 3]


text_of_stops = st.text(alphabet='abAI3 \n.!?"),-', max_size=40)


def ends_of(parts: Iterable[bytes]) -> list[int]:
    return list(accumulate(map(len, parts)))


@settings(max_examples=60, deadline=None)
@given(text_of_stops)
def test_tokens_are_cut_where_their_characters_are(text: str) -> None:
    """One rule for all tokenisations: cutting single bytes and cutting merged tokens gives one result."""
    single, merged = abstract(258), abstract(330)
    tokens = merged.encode(text)
    token_ends = ends_of(merged.texts[token] for token in tokens)
    boundaries = ends_of(single.sentences(single.encode(text)))
    moved = {min(end for end in token_ends if end >= boundary) for boundary in boundaries}
    assert ends_of(merged.sentences(tokens)) == sorted(moved)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*"ab .!?\n", "😀", "😂", "é", "👩‍🚀", "。", "ñ."]), max_size=30), st.booleans())
def test_no_character_is_ever_split(parts: list[str], regex: bool) -> None:
    """Tokens that hold parts of characters, some of them behind a stop and a blank, never part them."""
    found = emoji(regex).sentences(emoji(regex).encode("".join(parts)))
    assert b"".join(found) == "".join(parts).encode()
    for part in found:
        part.decode()


def test_the_emoji_tokenizer_has_tokens_that_end_inside_a_character_behind_a_stop() -> None:
    """Else the test above would test nothing."""
    assert any(b". \xf0" in text and text.decode(errors="ignore").encode() != text for text in emoji(False).texts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 270), max_size=20), max_size=6))
def test_spans_tile_every_response(responses: list[list[int]]) -> None:
    """Any ids at all, valid text or not."""
    table = emoji(False).table
    found = spans(responses, table)
    assert len(found) == len(responses)
    for response, cu_sents in zip(responses, found, strict=True):
        bounds = cu_sents.tolist()
        assert cu_sents.dtype == torch.int32
        assert bounds[0] == 0
        assert bounds[-1] == len(response)
        assert all(a < b for a, b in pairwise(bounds))
        # A response is cut alone as it is among others.
        assert spans([response], table)[0].tolist() == bounds
    whole = spans(responses, table, "response")
    assert [cu.tolist() for cu in whole] == [[0, len(r)] if r else [0] for r in responses]


def test_packed_offsets_and_granularity() -> None:
    table, ids = language().table, language().encode("One. Two.")
    cu_seqlens = torch.tensor([0, 0, len(ids), 2 * len(ids)], dtype=torch.int32)
    token_T = torch.tensor(ids + ids)
    first = spans([ids], table)[0].tolist()
    assert segment(token_T, cu_seqlens, table).tolist() == first + [len(ids) + b for b in first[1:]]
    assert segment(token_T, cu_seqlens, table, "response").tolist() == [0, len(ids), 2 * len(ids)]
    with pytest.raises(ValueError, match="^granularity: expected sentence or response, got 'word'"):
        segment(token_T, cu_seqlens, table, "word")  # type: ignore[arg-type]


def test_metaspace_and_byte_fallback() -> None:
    vocabulary = {
        "<unk>": 0,
        "</s>": 1,
        "▁Hi": 2,
        ".": 3,
        "▁you": 4,
        "<0x0A>": 5,
        "<0xE3>": 6,
        "▁": 7,
        "I": 8,
    }
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert vocabulary_bytes(tokenizer)[2:8] == [b" Hi", b".", b" you", b"\n", b"\xe3", b" "]
    table = build_sentence_table(tokenizer)
    # " Hi.| you\n|I  ." with the blanks before the stop inside the sentence
    assert spans([[2, 3, 4, 5, 8, 7, 7, 3, 1]], table)[0].tolist() == [0, 2, 4, 9]


def test_ends_of_sequence_and_padding_ids() -> None:
    tokenizer = language().tokenizer
    table = build_sentence_table(tokenizer, eos_ids=[0], vocab_size=1000)
    assert end_ids(table) == {0, 1}
    assert len(table.class_V) == 1000
    ids = tokenizer.encode("One. Two.")
    cut = spans([ids], table)[0].tolist()
    # Ids without text change nothing: not the sentence they are in, nor where the next one begins.
    padded = [*ids[: cut[1]], 999, *ids[cut[1] :]]
    assert len(spans([padded], table)[0]) == len(cut)
    assert spans([[*ids, 0]], table)[0].tolist() == [*cut[:-1], len(ids) + 1]
    with pytest.raises(ValueError, match=r"^vocab_size: expected at least \d+, got 10"):
        build_sentence_table(tokenizer, vocab_size=10)


def test_a_tokenizer_without_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="^tokenizer: expected a fast tokenizer, got object"):
        build_sentence_table(object())  # type: ignore[arg-type]
