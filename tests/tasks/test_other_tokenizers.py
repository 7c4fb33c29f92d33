"""Tokenizers of the other variants, and the one that all can share: they cover the texts, which stay short."""

from __future__ import annotations

import itertools
import string
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from aapa.engine.tasks.mini_if.lexicon import LEXICONS
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.mini_if.variants import DIFFICULTIES

SIZES = {
    "train_size": 300,
    "dev_size": 30,
    "test_size": 100,
    "held_out_size": 60,
    "held_out_types_size": 60,
    "corpus_size": 300,
}
LIMIT = 256
VARIANTS = list(itertools.product(LEXICONS, DIFFICULTIES))
OTHERS = VARIANTS[1:]
MARKS = '"<>*'


@cache
def build(style: str, difficulty: str, noise: float = 0.0) -> MiniIF:
    return MiniIF(style=style, difficulty=difficulty, expert_noise=noise, noise_kind="style", **SIZES)


@cache
def own(style: str, layouts: bool) -> PreTrainedTokenizerFast:
    return MiniIF(style=style, difficulty="hard" if layouts else "easy").tokenizer()


@cache
def both() -> PreTrainedTokenizerFast:
    return MiniIF(tokenizer="both").tokenizer()


def choices(style: str, difficulty: str) -> list[PreTrainedTokenizerFast]:
    return [own(style, difficulty != "easy"), both()]


def texts_of(task: MiniIF) -> list[str]:
    examples = [example for split in task.sizes for example in task.examples(split)]
    return sorted({*(text for e in examples for text in (e.prompt, *e.experts)), *task.corpus()})


def rows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [row.ids for row in tokenizer.backend_tokenizer.encode_batch(texts)]


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
def test_round_trip(style: str, difficulty: str) -> None:
    texts = texts_of(build(style, difficulty))
    for tokenizer in choices(style, difficulty):
        ids = rows(tokenizer, texts)
        assert tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False) == texts
        assert not {0, 1} & {token for row in ids for token in row}


@pytest.mark.parametrize(("style", "difficulty"), VARIANTS)
@pytest.mark.parametrize("noise", [0.0, 0.9])
def test_no_prompt_with_its_expert_exceeds_the_limit(style: str, difficulty: str, noise: float) -> None:
    task = build(style, difficulty, noise)
    for tokenizer in choices(style, difficulty):
        for split in task.sizes:
            for example in task.examples(split):
                prompt, *experts = map(len, rows(tokenizer, [example.prompt, *example.experts]))
                assert prompt + max(experts) + 1 <= LIMIT


def test_a_policy_of_the_default_tokenizer_can_read_the_formal_style() -> None:
    """Domain shift without foresight: every character has a token, though words fall into many."""
    task = build("formal", "easy")
    tokenizer = own("plain", False)
    for split in task.sizes:
        for example in task.examples(split):
            texts = [example.prompt, *example.experts]
            ids = rows(tokenizer, texts)
            assert tokenizer.backend_tokenizer.decode_batch(ids) == texts
            assert len(ids[0]) + max(map(len, ids[1:])) + 1 <= LIMIT


@pytest.mark.parametrize("style", LEXICONS)
def test_own_tokenizers(style: str) -> None:
    easy, layouts = own(style, False), own(style, True)
    assert (len(easy), len(layouts), len(both())) == (512, 576, 896)
    # Medium and hard prompts share theirs; seeds and sizes make no difference.
    medium = MiniIF(style=style, difficulty="medium", seed=5, train_size=7).tokenizer()
    assert medium.backend_tokenizer.to_str() == layouts.backend_tokenizer.to_str()


def test_the_shared_tokenizer_is_the_same_for_all() -> None:
    other = MiniIF(tokenizer="both", style="formal", difficulty="hard", seed=4, max_length=128).tokenizer()
    assert other.backend_tokenizer.to_str() == both().backend_tokenizer.to_str()
    assert (other.model_max_length, both().model_max_length) == (128, 256)


@pytest.mark.parametrize("name", ["plain layouts", "formal layouts", "formal easy", "both"])
def test_characters_and_special_tokens(name: str) -> None:
    style, _, kind = name.partition(" ")
    tokenizer = both() if name == "both" else own(style, kind == "layouts")
    characters = string.ascii_letters + string.digits + " \n.,:;-" + ("" if kind == "easy" else MARKS)
    encoded = rows(tokenizer, list(characters))
    assert [tokenizer.decode(row) for row in encoded] == list(characters)
    assert rows(tokenizer, ["é|" + ("" if kind != "easy" else MARKS)]) == [[]]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    # Sentence boundaries are found from token ids, so a terminator must not share a token with what follows.
    for token in tokenizer.get_vocab().keys() - {"<pad>", "<eos>"}:
        assert len(token) == 1 or not set(token) & set('.Ċ,-"<>*'), token


@pytest.mark.parametrize(("style", "difficulty"), OTHERS)
def test_prompt_and_response_encode_alike_together_and_apart(style: str, difficulty: str) -> None:
    examples = build(style, difficulty).examples("test")
    for tokenizer in choices(style, difficulty):
        together = rows(tokenizer, [example.prompt + example.experts[0] for example in examples])
        prompts, experts = (rows(tokenizer, [text(e) for e in examples]) for text in (prompt_of, expert_of))
        assert together == [a + b for a, b in zip(prompts, experts, strict=True)]


def prompt_of(example) -> str:  # type: ignore[no-untyped-def]
    return example.prompt


def expert_of(example) -> str:  # type: ignore[no-untyped-def]
    return example.experts[0]
