"""segment_sentences against the definition of its transducer, written out per sequence."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.kernels import SentenceTable, segment_sentences
from aapa.kernels.native import missing


def random_table(seed: int, vocabulary: int = 7, classes: int = 4, states: int = 3) -> SentenceTable:
    generator = torch.Generator().manual_seed(seed)
    shape = (classes, states)
    return SentenceTable(
        class_V=torch.randint(classes, (vocabulary,), generator=generator, dtype=torch.int32),
        next_CQ=torch.randint(states, shape, generator=generator, dtype=torch.uint8),
        cut_CQ=torch.rand(shape, generator=generator) < 0.4,
        mark_CQ=torch.rand(shape, generator=generator) < 0.6,
    )


def beginnings(tokens: list[int], table: SentenceTable) -> set[int]:
    """Where the sentences of one sequence begin, from the definition."""
    found, state, mark = {0}, 0, 0
    for place, token in enumerate(tokens):
        kind = int(table.class_V[token])
        if bool(table.cut_CQ[kind][state]):
            found.add(mark)
        if bool(table.mark_CQ[kind][state]):
            mark = place + 1
        state = int(table.next_CQ[kind][state])
    return found if tokens else set()


def stop_table() -> SentenceTable:
    """Token 1 is a stop: a sentence begins behind it unless the sequence ends there."""
    flags = torch.tensor([[False, True], [False, True]])
    return SentenceTable(
        class_V=torch.tensor([0, 1, 0], dtype=torch.int32),
        next_CQ=torch.tensor([[0, 0], [1, 1]], dtype=torch.uint8),
        cut_CQ=flags,
        mark_CQ=torch.tensor([[False, False], [True, True]]),
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=6),
    st.integers(0, 10_000),
)
def test_agrees_with_the_definition(sequences: list[list[int]], seed: int) -> None:
    table = random_table(seed)
    expected, offset, offsets = [], 0, [0]
    for tokens in sequences:
        # A cut that the table asks for before anything was marked is at the sequence's start, which is one
        # already.
        expected += sorted(offset + begin for begin in beginnings(tokens, table))
        offset += len(tokens)
        offsets.append(offset)
    token_T = torch.tensor([t for tokens in sequences for t in tokens], dtype=torch.int64)
    got = segment_sentences(token_T, torch.tensor(offsets, dtype=torch.int32), table)
    assert got.dtype == torch.int32
    assert got.tolist() == ([*expected, offset] if offset else [0])


def test_hand_made_cases() -> None:
    token_T = torch.tensor([0, 1, 2, 0, 1, 1, 0, 2, 2, 1])
    cu_seqlens = torch.tensor([0, 5, 5, 7, 8, 10], dtype=torch.int32)
    # [0 1 | 2 0 1] [] [1 | 0] [2] [2 1]
    assert segment_sentences(token_T, cu_seqlens, stop_table()).tolist() == [0, 2, 5, 6, 7, 8, 10]


def test_a_table_with_as_many_states_and_classes_as_there_may_be() -> None:
    """States are bytes: those above 127 count, too."""
    table = random_table(5, vocabulary=3000, classes=2000, states=256)
    assert int(table.next_CQ.max()) == 255
    tokens = torch.randint(3000, (400,), generator=torch.Generator().manual_seed(6))
    got = segment_sentences(tokens, torch.tensor([0, 400], dtype=torch.int32), table)
    assert got.tolist() == [*sorted(beginnings(tokens.tolist(), table)), 400]


def test_state_does_not_leak_from_one_sequence_into_the_next() -> None:
    alone = segment_sentences(torch.tensor([0, 2]), torch.tensor([0, 2]), stop_table())
    after = segment_sentences(torch.tensor([0, 1, 0, 2]), torch.tensor([0, 2, 4]), stop_table())
    assert (after[1:] - 2).tolist() == alone.tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_no_tokens_and_one_token(dtype: torch.dtype) -> None:
    empty = segment_sentences(torch.zeros(0, dtype=dtype), torch.tensor([0, 0, 0]), stop_table())
    assert empty.tolist() == [0]
    one = segment_sentences(torch.ones(1, dtype=dtype), torch.tensor([0, 0, 1, 1]), stop_table())
    assert one.tolist() == [0, 1]


def test_tokens_that_are_not_contiguous() -> None:
    token_T = torch.tensor([[0, 9], [1, 9], [2, 9]])[:, 0]
    assert not token_T.is_contiguous()
    assert segment_sentences(token_T, torch.tensor([0, 3]), stop_table()).tolist() == [0, 2, 3]


def test_refusals_name_the_argument() -> None:
    tokens, table = torch.tensor([0, 1]), stop_table()
    with pytest.raises(ValueError, match=r"^token_T: expected ids in \[0, 3\)"):
        segment_sentences(torch.tensor([0, 3]), torch.tensor([0, 2]), table)
    with pytest.raises(ValueError, match="^token_T"):
        segment_sentences(torch.tensor([-1, 0]), torch.tensor([0, 2]), table)
    for offsets in ([0, 1], [1, 2], [0, 2, 1, 2]):
        with pytest.raises(ValueError, match="^cu_seqlens"):
            segment_sentences(tokens, torch.tensor(offsets), table)
    with pytest.raises(ValueError, match="^backend"):
        segment_sentences(tokens, torch.tensor([0, 2]), table, backend="triton")


BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(missing() is not None, reason=str(missing())))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int8])
def test_small_integers_as_ids(backend: str, dtype: torch.dtype) -> None:
    token_T = torch.tensor([0, 1, 2, 0], dtype=dtype)
    assert segment_sentences(token_T, torch.tensor([0, 4]), stop_table(), backend=backend).tolist() == [0, 2, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_without_a_mark_begins_no_sentence(backend: str) -> None:
    always = torch.tensor([[True]])
    for marks in (False, True):
        table = SentenceTable(
            torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.uint8), always, torch.tensor([[marks]])
        )
        token_T = torch.zeros(3, dtype=torch.int64)
        got = segment_sentences(token_T, torch.tensor([0, 3]), table, backend=backend)
        assert got.tolist() == ([0, 1, 2, 3] if marks else [0, 3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_that_leads_outside_of_itself_is_refused(backend: str) -> None:
    token_T, cu_seqlens = torch.tensor([0, 1, 0]), torch.tensor([0, 3])
    for wrong in (-1, 2):
        classes = torch.tensor([0, wrong, 0], dtype=torch.int32)
        with pytest.raises(ValueError, match="^class_V: expected rows of next_CQ"):
            segment_sentences(token_T, cu_seqlens, replace(stop_table(), class_V=classes), backend=backend)
    states = torch.full((2, 2), 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="^next_CQ: expected states below"):
        segment_sentences(token_T, cu_seqlens, replace(stop_table(), next_CQ=states), backend=backend)


@pytest.mark.parametrize(("tokens", "offsets"), [([0.0, 1.0], [0, 2]), ([[0, 1]], [0, 1]), ([True], [0, 1])])
def test_ids_are_a_list_of_integers(tokens: list[int], offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="^token_T: expected "):
        segment_sentences(torch.tensor(tokens), torch.tensor(offsets), stop_table())


@pytest.mark.parametrize("offsets", [[], [0.0, 2.0], [[0, 2]]])
def test_what_is_no_list_of_offsets_is_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="^cu_seqlens: expected "):
        segment_sentences(torch.tensor([0, 1]), torch.tensor(offsets), stop_table())
