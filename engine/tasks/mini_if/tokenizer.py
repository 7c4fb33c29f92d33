"""Small byte-level BPEs trained on the grammar itself: one of each variant's own, and one for all variants."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.engine.tasks.mini_if.grammar import write_other_style
from aapa.engine.tasks.mini_if.lexicon import LEXICONS
from aapa.engine.tasks.mini_if.prompts import format_prompt, sample_prompt
from aapa.engine.tasks.mini_if.variants import HARD, MEDIUM, Variant

VOCABULARY_SIZE: Final = 512
LAYOUT_VOCABULARY_SIZE: Final = 576
SHARED_VOCABULARY_SIZE: Final = 896
PAD: Final = "<pad>"
EOS: Final = "<eos>"
# Every character of easy prompts and their experts, and the rest of the letters. The 256 bytes that byte-level
# BPE usually starts from would fill half the vocabulary and make texts half as long again.
ALPHABET: Final = string.ascii_letters + string.digits + " \n.,:;-"
# Marks of the other layouts. Each is a token of its own, so that none shares one with a full stop.
MARKS: Final = '"<>*'
_TEXTS: Final = 4000


def _training_texts(rng: Random, variants: Sequence[Variant], count: int) -> Iterator[str]:
    for number in range(count):
        variant = variants[number % len(variants)]
        if rng.random() < 0.7:
            yield variant.write_freely(rng, quotes=True)
        else:
            yield write_other_style(rng, variant.lexicon)
        yield format_prompt(*sample_prompt(rng, variant))


def build_tokenizer(variant: Variant, max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer of one variant; the result is the same every time.

    Characters outside `ALPHABET`, and `MARKS` where prompts are not easy, have no token and are dropped. A line
    break is always a token of its own, so that a prompt and its response encode alike whether together or apart.
    Medium and hard prompts share a tokenizer.

    Args:
        variant: whose texts it is trained on.
        max_length: the tokenizer's `model_max_length`, in tokens.
    """
    # Streams of their own: one tokenizer for all seeds and sizes, so that checkpoints stay comparable.
    if not variant.difficulty.layouts:
        texts = _training_texts(variant.stream("tokenizer"), (variant,), _TEXTS)
        return _train(texts, VOCABULARY_SIZE, ALPHABET, max_length)
    variants = [Variant(variant.lexicon, difficulty) for difficulty in (MEDIUM, HARD)]
    texts = _training_texts(variants[0].stream("tokenizer"), variants, _TEXTS)
    return _train(texts, LAYOUT_VOCABULARY_SIZE, ALPHABET + MARKS, max_length)


def build_shared_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer that all styles and difficulties can share, whatever the task's own variant."""
    variants = [Variant(lexicon, difficulty) for difficulty in (MEDIUM, HARD) for lexicon in LEXICONS.values()]
    texts = _training_texts(Random("mini-if/tokenizer/both"), variants, 2 * _TEXTS)
    return _train(texts, SHARED_VOCABULARY_SIZE, ALPHABET + MARKS, max_length)


def _train(texts: Iterator[str], size: int, alphabet: str, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split("\n", "isolated")]
    if set(MARKS) <= set(alphabet):
        splits.append(pre_tokenizers.Split(Regex(f"[{MARKS}]"), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [byte_level.pre_tokenize_str(character)[0][0] for character in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, EOS],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
