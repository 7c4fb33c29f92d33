"""Segmentation tables: hand-made cases, and the cut of tokens against the cut of characters."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.kernels import SentenceTable
from aapa.sentences import (
    automaton,
    build_sentence_table,
    end_ids,
    segment,
    spans,
    vocabulary_bytes,
)

# Text → its sentences, joined with "|".
CASES = [
    "It is here.| Next one.",
    "What?| Yes!| Really?!| Well... no",
    "Wait... I think so.| It...| It's so!? so?! he said… or… not",
    "It is 3.14 now.| Next.",
    "See example.com for more.| Yes.",
    "Mr. Smith met Dr. Who.| They left.",
    "J. Smith wrote it, e.g. here.| See i.e. that.",
    "Tea, milk, etc. are here, etc.| Then at 5 p.m. it was 6 p.m.| No. 5 is no.| and no.| Prof. Lee et al. left",
    "So do I.| Lower case.| and more.",
    "1. First thing\n|2. Second thing.\n\n|Third",
    "- one.\n|- two.\n|- three.",
    "One line\n and another\nlast\n\n|A paragraph.\n|Another line",
    "# A. Heading\n|Text\n|## 2. More\n|### Last",
    "Text:\n|- one.| two\n|* three\n  goes on\n|12. four\n|3) five\n\n|-not\n#not\n2020.| No *item*",
    "> Quoted.| On\n> and on\n>\n|> - item\n|> - item",
    "Title\n=====\n|Text.\n|---\n|Text",
    "See:\n|```python\n# a. B\n\n- c. D!\n> `e` ``f``\n```\n|After.| More",
    "````\n```\na. B\n```\nc. D\n````  \n|After ```a. B``` and.| Then",
    "  ```\n  a. B\n  ```x\n  ```\n|After",
    "```\nnever. Closed",
    "Take\n|$$\na. B\n\\] $ c. D\n$$\n|where $$a. B$$ is.| It costs $5.| $6",
    "\\[ a. B! \\(c\\)\n$$ \\]\n|After \\[ d. E \\].| More \\( x \\).| Last",
    "$$ never. Closed\n\n|Next.| One",
    'He said "stop."| Then (ok.)| "Go on!"| Done.',
    'He said "stop. Now. Please" and "Why?" he asked.| "Go!"| (see a. B) so',
    "“Go. Now.”| „Ja. Nein“ und „So.“| He went (a [b. C] dd.| e. «F. G» hh.| `a. B` cc. [12]| Next.[3]| Last.| (",
    'An "open quotation. Goes\n|- as far.| As\n\n|this.| Or this',
    "他说：“走。好！”|然后走了……| 好……「是。不！」|好（a。b）Then。|好",
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


def test_a_mark_is_set_before_anything_is_cut_at_it() -> None:
    """Else a table could cut twice at one place; and the numbers of states fit into a byte."""
    machine = automaton()
    assert len(machine.waits_Q) <= 256
    assert not machine.cut_KQ[:, ~machine.waits_Q].any()
    # Behind a cut nothing waits, unless the mark moved at once.
    assert not (machine.cut_KQ & ~machine.mark_KQ & machine.waits_Q[machine.next_KQ]).any()


# Texts of mini-IF, cut with the rules of the first version: what was trained on them depends on these.
MINI_IF = [
    "Tea can be warm and sweet.| It gives comfort to children.| So share tea at night.",
    "listen closely.| few things are as quiet as moss.| because of water, nothing is wild for busy families.",
    "- people often call jazz bold.\n|- with passion, old friends can hear slowly.\n|- in the end, jazz wins.",
    "- For quiet people, chess is tense.\n|- Think of the ladder near the skill.\n|- Ask me again.",
    "Here we go.| London can be old and grand.| at night, a lamp becomes busy.| Surely london deserves trade",
]


@pytest.mark.parametrize("marked", MINI_IF)
def test_texts_of_mini_if_are_cut_as_they_were(marked: str) -> None:
    mini_if = Language.of([text.replace("|", "") for text in MINI_IF] * 4, 512)
    ids = mini_if.encode(marked.replace("|", ""))
    assert b"|".join(mini_if.sentences([*ids, 1])).decode() == marked + "<eos>"


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
    # " Hi.| you\n\n|I  ." with the blanks before the stop inside the sentence
    assert spans([[2, 3, 4, 5, 5, 8, 7, 7, 3, 1]], table)[0].tolist() == [0, 2, 5, 10]


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


def word_level(*entries: str, **parts: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({entry: index for index, entry in enumerate(entries)}, entries[0]))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def with_model(model: models.Model, decoder: decoders.Decoder | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def lower_case_byte_level() -> PreTrainedTokenizerFast:
    return word_level("a", "b", normalizer=normalizers.Lowercase(), pre_tokenizer=pre_tokenizers.ByteLevel())


PARTS = {"[UNK]": 0, "a": 1, "b": 2, "##b": 3, "b</w>": 4}


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (with_model(models.WordPiece(PARTS, unk_token="[UNK]"), decoders.WordPiece()), "a WordPiece model"),
        (with_model(models.WordPiece(PARTS, unk_token="[UNK]")), "a WordPiece model"),
        (with_model(models.BPE(PARTS, [], continuing_subword_prefix="##")), "a BPE model"),
        (with_model(models.BPE(PARTS, [], end_of_word_suffix="</w>")), "a BPE model"),
        (word_level("a", "##b", decoder=decoders.WordPiece()), "a decoder that makes 'ab' of 'a' and '##b'"),
        (word_level("a", "b</w>", decoder=decoders.BPEDecoder("</w>")), "a decoder that makes"),
        (word_level("a", "b", normalizer=normalizers.Lowercase()), "a normalizer that turns É into é"),
        (
            word_level("a", "b", normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
            "a normalizer that turns É into E",
        ),
        (word_level("a", "b", normalizer=normalizers.BertNormalizer()), "a normalizer that turns É into e"),
        (word_level("a", "b", pre_tokenizer=pre_tokenizers.Whitespace()), "the pre-tokenizer Whitespace"),
        (word_level("a", "b", pre_tokenizer=pre_tokenizers.BertPreTokenizer()), "the pre-tokenizer Bert"),
        (word_level("a", "b", pre_tokenizer=pre_tokenizers.Split(" ", "removed")), "the pre-tokenizer Split"),
        (
            word_level(
                "▁a",
                "b",
                pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()]),
            ),
            "the pre-tokenizer Whitespace",
        ),
        (lower_case_byte_level(), "a normalizer that turns É into é"),
    ],
)
def test_tokenizers_whose_entries_do_not_spell_the_text_are_refused(
    tokenizer: PreTrainedTokenizerFast, problem: str
) -> None:
    expected = f"^tokenizer: expected vocabulary entries that spell the text .*, got {re.escape(problem)}"
    with pytest.raises(ValueError, match=expected):
        build_sentence_table(tokenizer)


def test_what_only_adds_blanks_or_composes_characters_is_accepted() -> None:
    written = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    back = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    assert vocabulary_bytes(word_level("▁a", "b", "É", normalizer=written, decoder=back)) == [b" a", b"b", "É".encode()]
    other = pre_tokenizers.Metaspace(replacement="_")
    assert vocabulary_bytes(word_level("_a", "b", pre_tokenizer=other)) == [b" a", b"b"]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    assert vocabulary_bytes(word_level("▁a", "b", pre_tokenizer=split)) == [b" a", b"b"]
