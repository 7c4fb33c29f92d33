"""A small byte-level BPE trained on problems and solutions; every digit is a token of its own."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.engine.tasks.reasoning.problems import SOURCES, problems
from aapa.engine.tasks.reasoning.solutions import write_solution

VOCABULARY_SIZE: Final = 256
PAD: Final = "<pad>"
EOS: Final = "<eos>"
ALPHABET: Final = string.ascii_letters + string.digits + " \n.,:()+-*/="
_TEXTS: Final = 1000


def _training_texts() -> Iterator[str]:
    # A stream of its own, with all datasets: one tokenizer for all options, so that checkpoints stay comparable.
    rng = Random("reasoning/tokenizer")
    for dataset in SOURCES:
        drawn = problems(dataset, "reasoning/tokenizer")
        for _ in range(_TEXTS):
            problem = next(drawn)
            yield problem.prompt
            yield write_solution(problem, rng)


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the result is the same every time.

    Characters outside `ALPHABET` have no token and are dropped. Digits and line breaks are always tokens of their
    own: numbers read alike wherever they stand, and a prompt and its response encode alike together or apart.

    Args:
        max_length: the tokenizer's `model_max_length`, in tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
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
