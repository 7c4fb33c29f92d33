"""A small byte-level BPE trained on the grammar itself."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.engine.tasks.mini_if.grammar import write_freely, write_other_style
from aapa.engine.tasks.mini_if.prompts import format_prompt, sample_prompt

VOCABULARY_SIZE: Final = 512
PAD: Final = "<pad>"
EOS: Final = "<eos>"
# Every character of the task, and the rest of the letters. The 256 bytes that byte-level BPE usually starts
# from would fill half the vocabulary and make texts half as long again.
ALPHABET: Final = string.ascii_letters + string.digits + " \n.,:;-"
_TEXTS: Final = 4000


def _training_texts() -> Iterator[str]:
    # A stream of its own: one tokenizer for all seeds and sizes, so that checkpoints stay comparable.
    rng = Random("mini-if/tokenizer")
    for _ in range(_TEXTS):
        yield write_freely(rng) if rng.random() < 0.7 else write_other_style(rng)
        yield format_prompt(*sample_prompt(rng))


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the result is the same every time.

    Characters outside `ALPHABET` have no token and are dropped. A line break is always a token of its own, so
    that a prompt and its response encode alike whether together or apart.

    Args:
        max_length: the tokenizer's `model_max_length`, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [byte_level.pre_tokenize_str(character)[0][0] for character in ALPHABET]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, EOS],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
