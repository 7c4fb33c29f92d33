"""segment_sentences against decoding the tokens and cutting the text with a regular expression or with
sentencex."""

import bisect
import random
import re
from collections.abc import Callable
from itertools import accumulate, pairwise

import sentencex
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aapa.kernels import segment_sentences
from aapa.sentences import build_sentence_table
from benchmarks.harness import Candidate, Case, Options, main

WORDS = (
    "rain",
    "moss",
    "tea",
    "river",
    "lamp",
    "stone",
    "garden",
    "window",
    "3.14",
    "e.g.",
    "Dr.",
    "it",
    "is",
    "a",
)
STOP = re.compile(r"[.!?…]+[\"')\]]*\s+|\n+")


def text(rng: random.Random, sentences: int) -> str:
    """Sentences of three to twelve words."""
    parts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))).capitalize() for _ in range(sentences)]
    return "".join(part + rng.choice([". ", "! ", ".\n", '." ']) for part in parts)


def by_text(responses: list[list[int]], texts: list[str], ends_of: Callable[[str], list[int]]) -> list[list[int]]:
    """Cuts the text of each response and moves every boundary to the end of its token."""
    found = []
    for ids in responses:
        pieces = [texts[token] for token in ids]
        token_ends = list(accumulate(map(len, pieces)))
        ends = ends_of("".join(pieces))
        found.append(sorted({bisect.bisect_left(token_ends, end) for end in ends}))
    return found


def regex_ends(whole: str) -> list[int]:
    return [match.end() for match in STOP.finditer(whole)]


def sentencex_ends(whole: str) -> list[int]:
    return list(accumulate(len(part) for part in sentencex.segment("en", whole)))


def cut_only(decoded: list[str]) -> None:
    """What sentencex itself takes: no decoding, and no boundary moved to a token."""
    for whole in decoded:
        sentencex.segment("en", whole)


def case(number: int, tokens: int, options: Options) -> Case:
    """Responses of about so many tokens."""
    rng = random.Random(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<eos>"], show_progress=False)
    backend.train_from_iterator([text(rng, 20) for _ in range(50)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    table = build_sentence_table(tokenizer)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    responses = [[*tokenizer.encode(text(rng, max(1, tokens // 12))), 0] for _ in range(number)]
    offsets = list(accumulate(map(len, responses), initial=0))
    token_T = torch.tensor([token for ids in responses for token in ids], device=options.device)
    cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device=options.device)
    decoded = ["".join(texts[token] for token in ids) for ids in responses]
    sentences = len(segment_sentences(token_T, cu_seqlens, table)) - 1
    assert max(b - a for a, b in pairwise(offsets)) > 0
    return Case(
        "segment_sentences",
        {"N": number, "T": len(token_T), "S": sentences},
        "int64",
        [
            Candidate("auto", lambda: segment_sentences(token_T, cu_seqlens, table)),
            Candidate("reference", lambda: segment_sentences(token_T, cu_seqlens, table, backend="reference")),
            Candidate("text + regex", lambda: by_text(responses, texts, regex_ends), peer=True),
            Candidate("text + sentencex", lambda: by_text(responses, texts, sentencex_ends), peer=True),
            Candidate("sentencex alone, on the decoded text", lambda: cut_only(decoded), peer=True),
        ],
        moved_bytes=8 * len(token_T),
    )


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [case(2, 24, options)]
    return [case(128, 60, options), case(64, 1024, options)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
