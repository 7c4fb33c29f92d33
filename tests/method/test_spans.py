"""Anchoring outside of delimiters: which tokens are meant, how spans are cut, and the advantages of what is left."""

from __future__ import annotations

import re
import sys
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aapa.kernels import SentenceTable, anchor_advantages
from aapa.sentences import anchored_spans, build_sentence_table, outside, spans

sys.path.insert(0, str(Path(__file__).parent))
from straight_line import anchor_values

OPEN, CLOSE = 3, 4
VOCABULARY = {
    "one": 0,
    " two": 1,
    ".": 2,
    "<think>": OPEN,
    "</think>": CLOSE,
    " three": 5,
    "\n": 6,
    "<eos>": 7,
    " (": 8,
    "```": 9,
}
tokens = st.lists(st.sampled_from(sorted(VOCABULARY.values())), max_size=14)
prompts = st.lists(st.sampled_from(sorted(VOCABULARY.values())), min_size=1, max_size=5)


@cache
def table() -> SentenceTable:
    backend = Tokenizer(models.WordLevel(VOCABULARY, "one"))
    return build_sentence_table(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


def literal_outside(prompt: list[int], response: list[int]) -> list[bool]:
    """As one writes it on text: from an opening delimiter to the next closing one or the end; stray ones, too."""
    text = "".join({OPEN: "<", CLOSE: ">"}.get(token, "x") for token in prompt + response)
    kept = [True] * len(text)
    for part in re.finditer("<[^>]*>?|>", text):
        kept[part.start() : part.end()] = [False] * (part.end() - part.start())
    return kept[len(prompt) :]


@pytest.mark.parametrize(("prompt", "response", "kept"), [
    ([0], [OPEN, 0, 1, CLOSE, 1, 2], [0, 0, 0, 0, 1, 1]),
    ([0], [1, 2], [1, 1]),
    ([0], [1, OPEN, CLOSE, 2], [1, 0, 0, 1]),
    # The prompt opens the part: a chat template often ends with the delimiter.
    ([0, OPEN], [0, 1, CLOSE, 2], [0, 0, 0, 1]),
    ([OPEN, 0, CLOSE], [1, 2], [1, 1]),
    ([OPEN, CLOSE, OPEN, 1], [1, 2], [0, 0]),
    # Never closed.
    ([0], [1, OPEN, 1, 2, 7], [1, 0, 0, 0, 0]),
    ([0], [1, 2, OPEN], [1, 1, 0]),
    # The first closing delimiter ends it, however often it was opened; a second one is still a delimiter.
    ([0], [OPEN, 0, OPEN, 1, CLOSE, 2, CLOSE, 5], [0, 0, 0, 0, 0, 1, 0, 1]),
    ([OPEN], [OPEN, 0, CLOSE, 1], [0, 0, 0, 1]),
    # Closed without having been opened.
    ([0], [1, CLOSE, 2], [1, 0, 1]),
    ([0, CLOSE], [1, 2], [1, 1]),
    # Twice.
    ([0], [OPEN, 0, CLOSE, 1, OPEN, 2, CLOSE, 5], [0, 0, 0, 1, 0, 0, 0, 1]),
    ([0], [], []),
    ([OPEN], [], []),
])  # fmt: skip
def test_tokens_outside_of_delimiters(prompt: list[int], response: list[int], kept: list[int]) -> None:
    ours = outside(prompt, response, OPEN, CLOSE)
    assert ours.dtype == torch.bool
    assert ours.tolist() == [bool(k) for k in kept] == literal_outside(prompt, response)


@given(prompt=prompts, response=tokens)
def test_outside_is_what_a_pattern_on_text_finds(prompt: list[int], response: list[int]) -> None:
    assert outside(prompt, response, OPEN, CLOSE).tolist() == literal_outside(prompt, response)


def test_anchored_spans_by_hand() -> None:
    # "one two. three</think>\n one." with the part opened in the prompt; the part ends within a sentence.
    prompt, response = [0, OPEN], [0, 1, 2, 5, CLOSE, 0, 2]
    (cut,), (kept,) = anchored_spans([prompt], [response], table(), delimiters=(OPEN, CLOSE))
    assert cut.tolist() == [0, 3, 5, 7]
    assert kept.tolist() == [False, False, True]
    (cut,), (kept,) = anchored_spans([prompt], [response], table(), "response", (OPEN, CLOSE))
    assert (cut.tolist(), kept.tolist()) == ([0, 5, 7], [False, True])
    # What a thought leaves open does not reach the answer, in which two sentences are.
    for thought in ([8, 0], [9, 6, 0, 6], [0, 8, 2]):
        (cut,), (kept,) = anchored_spans(
            [[0]], [[OPEN, *thought, CLOSE, 6, 0, 2, 1, 2, 7]], table(), "sentence", (OPEN, CLOSE)
        )
        ends = [len(thought) + 2 + place for place in (0, 3, 6)]
        assert (cut.tolist()[-3:], kept.tolist()[-2:]) == (ends, [True, True]), "the line break belongs to what follows"
        assert not any(kept.tolist()[:-2])
    # Blanks and an end of sequence are no sentence.
    (cut,), (kept,) = anchored_spans(
        [[0]], [[0, 2, OPEN, 0, CLOSE, 6, OPEN, CLOSE, 7]], table(), "sentence", (OPEN, CLOSE)
    )
    assert (cut.tolist(), kept.tolist()) == ([0, 2, 5, 6, 8, 9], [True, False, False, False, False])
    # Nothing outside.
    (cut,), (kept,) = anchored_spans([prompt], [response[:4]], table(), "response", (OPEN, CLOSE))
    assert (cut.tolist(), kept.tolist()) == ([0, 4], [False])


@settings(max_examples=60)
@given(
    pairs=st.lists(st.tuples(prompts, tokens), max_size=5),
    granularity=st.sampled_from(["sentence", "response"]),
    delimited=st.booleans(),
)
def test_anchored_spans_tile_and_tell_what_is_meant(
    pairs: list[tuple[list[int], list[int]]], granularity: Any, delimited: bool
) -> None:
    asked, responses = [p for p, _ in pairs], [r for _, r in pairs]
    delimiters = (OPEN, CLOSE) if delimited else None
    cuts, kept = anchored_spans(asked, responses, table(), granularity, delimiters)
    assert len(cuts) == len(kept) == len(pairs)
    for (prompt, response), cut, flags in zip(pairs, cuts, kept, strict=True):
        mask = literal_outside(prompt, response) if delimited else [True] * len(response)
        changes = [t for t in range(1, len(mask)) if mask[t] != mask[t - 1]] if delimited else []
        bounds, expected = [0], []
        for first, last in pairwise([0, *changes, len(response)] if response else []):
            (alone,) = spans([response[first:last]], table(), granularity)
            bounds += [first + bound for bound in alone.tolist()[1:]]
            blank = delimited and set(response[first:last]) <= {6, 7}
            expected += [mask[first] and not blank] * (len(alone) - 1)
        assert cut.dtype == torch.int32 and flags.dtype == torch.bool
        assert (cut.tolist(), flags.tolist()) == (bounds, expected)


def test_no_responses_have_no_spans() -> None:
    assert anchored_spans([], [], table(), delimiters=(OPEN, CLOSE)) == ([], [])
    cuts, kept = anchored_spans([[0], [OPEN]], [[], []], table(), delimiters=(OPEN, CLOSE))
    assert [cut.tolist() for cut in cuts] == [[0], [0]]
    assert [flags.tolist() for flags in kept] == [[], []]


def flat(rows: list[list[Any]]) -> list[Any]:
    return [value for row in rows for value in row]


@pytest.mark.parametrize("aggregation", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("credit", ["sentence", "return"])
@settings(max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2),  # group
            st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=4),  # lengths of sentences, spoken of
            st.booleans(),  # whether the prompt has experts
        ),
        min_size=1,
        max_size=7,
    ),
    discount=st.sampled_from([1.0, 0.7, 0.01]),
    seed=st.integers(0, 10**6),
)
def test_advantages_of_the_sentences_that_are_spoken_of(
    aggregation: Any, credit: Any, rows: list[Any], discount: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    groups = [group for group, _, _ in rows]
    lengths = [[length for length, _ in sentences] for _, sentences, _ in rows]
    spoken = [[flag for _, flag in sentences] for _, sentences, _ in rows]
    anchored = [yes for _, _, yes in rows]
    scores = [(2 * torch.randn(len(row), generator=g, dtype=torch.float64)).tolist() for row in lengths]
    options = {"mean": 0.3, "std": 0.8, "clip": 2.0, "aggregation": aggregation, "credit": credit}
    _, ours_T = anchor_advantages(
        torch.tensor(flat(scores), dtype=torch.float64),
        torch.zeros(len(rows), dtype=torch.float64),
        torch.tensor(list(accumulate(flat(lengths), initial=0)), dtype=torch.int32),
        torch.tensor(list(accumulate(map(sum, lengths), initial=0)), dtype=torch.int32),
        torch.tensor(groups),
        discount=discount,
        anchored_N=torch.tensor(anchored),
        anchored_S=torch.tensor(flat(spoken), dtype=torch.bool),
        **options,
    )
    meant = [[flag and yes for flag in row] for row, yes in zip(spoken, anchored, strict=True)]
    wanted = anchor_values(scores, lengths, groups, meant, discount=discount, **options)
    flags = flat([[flag] * n for row, sizes in zip(meant, lengths, strict=True)
                  for flag, n in zip(row, sizes, strict=True)])  # fmt: skip
    spoken_T = torch.tensor(flags, dtype=torch.bool)
    wanted_T = torch.tensor(flat(wanted), dtype=torch.float64)
    torch.testing.assert_close(ours_T[spoken_T], wanted_T[spoken_T], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("credit", ["sentence", "return"])
def test_outside_of_them_there_is_nothing(credit: Any) -> None:
    """As the docstring of `anchored_S` says. (The loss does not see it: `Sequence.anchor_mask` takes the weight.)"""
    _, anchor_T = anchor_advantages(
        torch.tensor([1.0, 2.0]), torch.zeros(1), torch.tensor([0, 1, 2]), torch.tensor([0, 2]),
        torch.zeros(1, dtype=torch.long), mean=0.0, std=1.0, credit=credit, anchored_S=torch.tensor([False, True]),
    )  # fmt: skip
    assert anchor_T.tolist() == [0.0, 2.0]


def test_a_baseline_by_hand() -> None:
    """Two rollouts of which only parts are anchored: what lies within the delimiters enters no mean."""
    cu_sents, cu_seqlens = torch.tensor([0, 2, 3, 7, 8]), torch.tensor([0, 3, 8])
    spoken = torch.tensor([True, False, True, True])

    def values(aggregation: Any, credit: Any) -> list[float]:
        return anchor_advantages(
            torch.tensor([1.0, 2.5, -1.0, 0.5], dtype=torch.float64), torch.zeros(2), cu_sents, cu_seqlens,
            torch.zeros(2, dtype=torch.long), mean=0.0, std=1.0, aggregation=aggregation, credit=credit,
            discount=0.5, anchored_S=spoken,
        )[1].tolist()  # fmt: skip

    # b of the first: (4 * -1 + 0.5) / 5 = -0.7; of the second: 1, for its only companion is anchored on one sentence.
    for aggregation in ("dapo", "grpo"):
        assert values(aggregation, "sentence") == pytest.approx([1.7, 1.7, 0.0, -2.0, -2.0, -2.0, -2.0, -0.5])
        assert values(aggregation, "return") == pytest.approx([1.7, 1.7, 0.0, -2.25, -2.25, -2.25, -2.25, -0.5])
