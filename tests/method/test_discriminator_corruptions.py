"""Damaged expert responses: what each kind does, on a byte-level tokenizer."""

import random
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aapa.discriminator.corruptions import CORRUPTIONS, Corruptor, Damaged, SentenceText
from aapa.kernels import SentenceTable
from aapa.sentences import build_sentence_table, spans

EOS = 0
TEXTS = [
    "Tea can be warm. It gives steam to children. So share tea at night.",
    "- Rain is quiet.\n- It gives light, always.\n- In the end, rain wins.",
    "Moss stays green. Moss is wild!",
    "one word.",
    "茶は温かい。雨は静かだ。",
]
OWNERS = [0, 1, 2, 2, 3]


@cache
def bytes_tokenizer() -> tuple[PreTrainedTokenizerFast, SentenceTable]:
    """Every byte of ASCII a token, and every character of the Japanese text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": EOS, **{c: i + 1 for i, c in enumerate(alphabet)}}
    merges = []
    for character in sorted(set(TEXTS[4])):
        first, second, third = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
            character
        )[0][0]
        for left, right in ((first, second), (first + second, third)):
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    return tokenizer, build_sentence_table(tokenizer)


def decode(ids: list[int]) -> str:
    text: str = bytes_tokenizer()[0].decode(ids)
    return text


def encode(text: str) -> list[int]:
    ids: list[int] = bytes_tokenizer()[0].encode(text)
    return ids


@cache
def corruptor() -> Corruptor:
    return Corruptor([[*encode(text), EOS] for text in TEXTS], OWNERS, bytes_tokenizer()[1], encode, decode)


def many(index: int, kind: str, number: int = 60) -> list[Damaged]:
    made = [corruptor().corrupt(index, kind, random.Random(seed)) for seed in range(number)]
    return [damaged for damaged in made if damaged is not None]


def negatives(damaged: Damaged) -> list[str]:
    """Texts of the sentences that count as negatives."""
    (cu_sents,) = spans([damaged.ids], bytes_tokenizer()[1])
    flags = damaged.negatives(cu_sents)
    bounds = cu_sents.tolist()
    parts = [damaged.ids[a:b] for a, b in pairwise(bounds)]
    return [decode([t for t in part if t != EOS]) for part, flag in zip(parts, flags, strict=True) if flag]


def text_of(damaged: Damaged) -> str:
    return decode([t for t in damaged.ids if t != EOS])


@settings(max_examples=120, deadline=None)
@given(st.integers(0, len(TEXTS) - 1), st.sampled_from(CORRUPTIONS), st.integers(0, 10_000))
def test_what_is_true_of_every_kind(index: int, kind: str, seed: int) -> None:
    damaged = corruptor().corrupt(index, kind, random.Random(seed))
    if damaged is None:
        return
    original = [*encode(TEXTS[index]), EOS]
    assert damaged.kind == kind
    assert len(damaged.damaged) == len(damaged.ids)
    assert damaged.ids != original
    assert any(damaged.damaged)
    # One end of sequence, at the end; none where the response breaks off.
    assert EOS not in damaged.ids[:-1]
    assert damaged.ids[-1] == EOS or kind == "truncation"
    # What is not damaged is the original, in its order, but for a sentence that was moved to the end.
    rest = [token for token, flag in zip(damaged.ids, damaged.damaged, strict=True) if not flag]
    remaining = iter(original)
    assert all(token in remaining for token in rest)
    assert corruptor().corrupt(index, kind, random.Random(seed)) == damaged


def test_repetition_says_a_sentence_again() -> None:
    for damaged in many(0, "repetition"):
        assert set(negatives(damaged)) <= {
            " " + said for said in ("Tea can be warm.", "It gives steam to children.", "So share tea at night.")
        }
        assert 1 <= len(negatives(damaged)) <= 3
    listed = {text for damaged in many(1, "repetition") for text in negatives(damaged)}
    assert "- Rain is quiet.\n" in listed, "repeats inside a list are set out as its items are"


def test_going_on_after_the_end() -> None:
    sentences = {"Tea can be warm", "It gives steam to children", "So share tea at night"}
    seen = set()
    for damaged in many(0, "going_on"):
        text = text_of(damaged)
        assert text.startswith("Tea can be warm.")
        tail = negatives(damaged)
        assert text.endswith("".join(tail)), "only what comes last is damaged"
        moved = "It gives steam to children." not in text[: -len(tail[-1])]
        seen.add("moved" if moved else "own" if tail[0].strip(" .") in sentences else "other")
        if not moved:
            assert text.startswith(TEXTS[0])
    assert seen == {"moved", "own", "other"}
    for damaged in many(1, "going_on", 20):
        assert text_of(damaged).count("\n- ") >= 2
        assert text_of(damaged).splitlines()[-1].startswith("- ")


def test_truncation_drops_words_or_breaks_off() -> None:
    broken = [damaged for damaged in many(0, "truncation") if damaged.ids[-1] != EOS]
    shortened = [damaged for damaged in many(0, "truncation") if damaged.ids[-1] == EOS]
    assert broken
    assert shortened
    for damaged in broken:
        assert TEXTS[0].startswith(text_of(damaged))
        assert len(negatives(damaged)) <= 1
    for damaged in shortened:
        assert len(text_of(damaged).split()) < len(TEXTS[0].split())
        assert set(text_of(damaged).replace(".", "").split()) <= set(TEXTS[0].replace(".", "").split())


@pytest.mark.parametrize("index", [0, 1])
def test_words_are_shuffled_doubled_and_substituted(index: int) -> None:
    own = TEXTS[index].split()
    for damaged in many(index, "shuffled_words"):
        assert sorted(text_of(damaged).replace(".", "").split()) == sorted(TEXTS[index].replace(".", "").split())
    for damaged in many(index, "duplicated_words"):
        words = text_of(damaged).split()
        assert len(words) > len(own)
        assert {word.strip(".") for word in words} == {word.strip(".") for word in own}
    for damaged in many(index, "substituted_words"):
        assert len(text_of(damaged).split()) == len(own)
        foreign = {word for other, owner in zip(TEXTS, OWNERS, strict=True) if owner != index for word in other.split()}
        new = {word.strip(".") for word in text_of(damaged).split()} - {word.strip(".") for word in own}
        assert new <= {word.strip(".!") for word in foreign} | {"茶は温かい", *"茶は温かい雨静だ"}


def test_wrong_case_and_other_topics() -> None:
    for damaged in many(0, "wrong_case"):
        assert text_of(damaged) != TEXTS[0]
        assert text_of(damaged).lower() == TEXTS[0].lower()
    for damaged in many(0, "other_topic"):
        for text in negatives(damaged):
            assert not any(text.strip() == sentence for sentence in ("Tea can be warm.", "So share tea at night."))
            body = SentenceText.of(text).body
            assert any(body in other for other in TEXTS[1:]), "a sentence of another prompt"


def test_text_without_blanks_is_damaged_by_characters() -> None:
    shuffled = many(4, "shuffled_words")
    assert shuffled
    for damaged in shuffled:
        assert sorted(text_of(damaged)) == sorted(TEXTS[4])


def test_most_of_a_sentence_must_be_damaged() -> None:
    ids = [*encode("One two. Three."), EOS]
    (cu_sents,) = spans([ids], bytes_tokenizer()[1])
    flags = [False] * len(ids)
    flags[0:4] = [True] * 4
    assert Damaged(ids, flags, "x").negatives(cu_sents) == [False, False], "half is not most"
    flags[4] = True
    assert Damaged(ids, flags, "x").negatives(cu_sents) == [True, False]


def test_what_cannot_be_damaged_is_not() -> None:
    lonely = Corruptor([[*encode("word."), EOS], [EOS]], [0, 0], bytes_tokenizer()[1], encode, decode)
    for seed in range(10):
        assert lonely.corrupt(0, "shuffled_words", random.Random(seed)) is None
        assert lonely.corrupt(0, "other_topic", random.Random(seed)) is None, "there is no other prompt"
        assert all(lonely.corrupt(1, kind, random.Random(seed)) is None for kind in CORRUPTIONS)
    with pytest.raises(ValueError, match="^kind: expected one of repetition"):
        corruptor().corrupt(0, "rot13", random.Random(0))


def test_words_that_the_vocabulary_cannot_write_are_not_used() -> None:
    """A tokenizer without a byte alphabet drops unknown characters; what is left would be no wrong case."""

    def without_capitals(text: str) -> list[int]:
        return encode("".join(c for c in text if not c.isupper()))

    small = Corruptor(
        [[*encode("tea is warm. it is sweet."), EOS]], [0], bytes_tokenizer()[1], without_capitals, decode
    )
    assert all(small.corrupt(0, "wrong_case", random.Random(seed)) is None for seed in range(20))
    assert small.corrupt(0, "shuffled_words", random.Random(0)) is not None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (" Tea is warm.", (" ", "Tea is warm", ".")),
        ("- Rain, wins!\n", ("- ", "Rain, wins", "!\n")),
        ("12) It is 3.5 km.", ("12) ", "It is 3.5 km", ".")),
        ("\n", ("\n", "", "")),
        ("?!", ("", "", "?!")),
    ],
)
def test_sentences_are_taken_apart(text: str, parts: tuple[str, str, str]) -> None:
    assert SentenceText.of(text) == SentenceText(*parts)
