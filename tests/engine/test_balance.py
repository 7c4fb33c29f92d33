"""Sequences that move between replicas even out tokens, and get lost nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from aapa.batch import Sequence
from aapa.engine.balance import balanced, moves

REPLICAS = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=12), min_size=1, max_size=6)


def after(lengths: list[list[int]]) -> list[list[int]]:
    planned = moves(lengths)
    gone = {(source, place) for source, place, _ in planned}
    assert len(gone) == len(planned), "a sequence moves once"
    kept = [[n for place, n in enumerate(row) if (rank, place) not in gone] for rank, row in enumerate(lengths)]
    for source, place, target in planned:
        kept[target].append(lengths[source][place])
    return kept


@given(REPLICAS)
def test_moves_never_make_the_longest_replica_longer_and_lose_nothing(lengths):
    found = after(lengths)
    assert sorted(n for row in found for n in row) == sorted(n for row in lengths for n in row)
    assert all(found), "a replica without sequences could not take part in the step"
    assert max(map(sum, found)) <= max(map(sum, lengths))


def test_a_replica_of_long_responses_gives_some_away():
    assert list(map(sum, after([[100, 90, 80, 70], [10, 20, 30, 40], [50, 50, 50, 50]]))) == [240, 200, 200]
    assert moves([[30, 30], [30, 30]]) == moves([[5]]) == []


def test_a_replica_gets_the_sequences_that_were_meant_for_it():
    """Three replicas at once, on what a gather would give each of them."""
    lengths = [[40, 30, 20], [5], [6, 7]]
    everything = [
        [Sequence(torch.tensor([rank]), torch.full((n - 1,), place), "expert") for place, n in enumerate(row)]
        for rank, row in enumerate(lengths)
    ]
    planned = moves(lengths)
    leaving = [{place: everything[rank][place] for source, place, _ in planned if source == rank} for rank in range(3)]

    def replica(rank: int) -> list[Sequence]:
        answers = iter([lengths, leaving])
        asked = []

        def gather(value):
            asked.append(value)
            return next(answers)

        parallel = SimpleNamespace(data=3, data_rank=rank, gather_over_data=gather)
        found = balanced(everything[rank], parallel)
        assert asked == [lengths[rank], leaving[rank]]
        return found

    shares = [replica(rank) for rank in range(3)]
    names = sorted((int(s.prompt), len(s)) for share in shares for s in share)
    assert names == sorted((rank, n) for rank, row in enumerate(lengths) for n in row)
    assert [sum(len(s) for s in share) for share in shares] == list(map(sum, after(lengths)))
