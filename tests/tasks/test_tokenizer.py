"""The tokenizer covers the whole task, is the same every time, and survives being saved beside a model."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from statistics import mean

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aapa.engine.tasks.mini_if.task import MiniIF

SPLITS = ("train", "dev", "test", "held_out")
PINNED = "66c6ea04b2743a53aa44777df4c3ff5d547c31b5f534bd22d2c8c34329457034"


@pytest.fixture(scope="module")
def tokenizer(task: MiniIF) -> PreTrainedTokenizerFast:
    return task.tokenizer()


@pytest.fixture(scope="module")
def encoded(task: MiniIF, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[int]]:
    """The token ids of every text of the task, by the backend: many times faster than the wrapper."""
    examples = [example for split in SPLITS for example in task.examples(split)]
    written = [text for example in examples for text in (example.prompt, *example.experts)]
    texts = sorted({*written, *task.corpus()})
    rows = tokenizer.backend_tokenizer.encode_batch(texts)
    return {text: row.ids for text, row in zip(texts, rows, strict=True)}


def ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def test_round_trip_on_every_text(tokenizer: PreTrainedTokenizerFast, encoded: dict[str, list[int]]) -> None:
    texts, rows = list(encoded), list(encoded.values())
    assert len(texts) > 40_000
    assert tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False) == texts
    # The wrapper must do the same, and leave the end-of-sequence token out on request.
    texts, rows = texts[::20], rows[::20]
    assert ids(tokenizer, texts) == rows
    assert tokenizer.batch_decode(rows) == texts
    ended = [[*row, tokenizer.eos_token_id] for row in rows]
    assert tokenizer.batch_decode(ended, skip_special_tokens=True) == texts


def test_every_character_of_the_task_has_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    characters = string.ascii_letters + string.digits + " \n.,:;-"
    assert [tokenizer.decode(row) for row in ids(tokenizer, list(characters))] == list(characters)
    # Documented: anything else has none.
    assert ids(tokenizer, ["é<|"]) == [[]]


def test_special_tokens_and_size(task: MiniIF, tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 512
    assert max(tokenizer.get_vocab().values()) == 511
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eos>", 1)
    assert tokenizer.model_max_length == 256
    assert MiniIF(max_length=128).tokenizer().model_max_length == 128
    # Plain encoding adds nothing; the engine decides where a response ends.
    assert not {0, 1} & {token for row in ids(tokenizer, task.corpus()[:200]) for token in row}


def test_length_budget(task: MiniIF, encoded: dict[str, list[int]]) -> None:
    lengths = []
    for example in (example for split in SPLITS for example in task.examples(split)):
        responses = [len(encoded[text]) + 1 for text in example.experts]
        assert len(encoded[example.prompt]) + max(responses) < 160
        lengths += responses
    # A byte alphabet in the vocabulary would cost half as many tokens again.
    assert 38 < mean(lengths) < 45
    # Recipes generate at most 72 tokens: nearly every expert must fit.
    assert sum(length > 72 for length in lengths) < 0.005 * len(lengths)


def test_prompt_and_response_encode_alike_together_and_apart(
    task: MiniIF, tokenizer: PreTrainedTokenizerFast, encoded: dict[str, list[int]]
) -> None:
    for example in task.examples("test") + task.examples("held_out"):
        together = tokenizer.backend_tokenizer.encode(example.prompt + example.experts[0]).ids
        assert together == encoded[example.prompt] + encoded[example.experts[0]]


def test_line_breaks_and_full_stops_stand_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    # Sentence boundaries are found from token ids, so a terminator must not share a token with what follows.
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not set(token) & set(".Ċ,-"), token


def test_same_for_every_seed_and_size(tokenizer: PreTrainedTokenizerFast) -> None:
    other = MiniIF(seed=9, train_size=3).tokenizer()
    assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    # The one of published checkpoints.
    assert hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest() == PINNED


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_saved_beside_a_qwen3_model(
    task: MiniIF, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, loader: type
) -> None:
    # AutoTokenizer looks at the model's type; it must not put Qwen's own pre-tokenizer in place of ours.
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 512}))
    loaded = loader.from_pretrained(tmp_path)  # type: ignore[attr-defined]
    texts = [text for example in task.examples("held_out") for text in (example.prompt + example.experts[0],)]
    assert ids(loaded, texts) == ids(tokenizer, texts)
    assert loaded.batch_decode(ids(loaded, texts)) == texts
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.model_max_length) == (0, 1, 256)
