"""Equal work for replicas: sequences of an update move from those with many tokens to those with few.

A replica waits for the slowest one before each optimizer step, and responses differ in length by far. The weights of a
loss are fixed by counts over all replicas (METHOD 4.1), so it does not matter where a sequence is worked on.
"""

from __future__ import annotations

from aapa.batch import Sequence
from aapa.engine.policy.parallel import Parallel

# (from replica, place there, to replica)
Move = tuple[int, int, int]


def moves(lengths: list[list[int]]) -> list[Move]:
    """Moves that even out the tokens of replicas, as few as go one by one from the heaviest to the lightest.

    Each takes the sequence whose length is nearest to half of what the two differ by, until none makes the difference
    smaller. A replica with sequences keeps one.
    """
    loads = [sum(row) for row in lengths]
    left = [dict(enumerate(row)) for row in lengths]
    found: list[Move] = []
    while True:
        heavy, light = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[heavy] - loads[light]
        candidates = [(abs(2 * length - gap), place) for place, length in left[heavy].items() if 0 < length < gap]
        if not candidates or len(left[heavy]) == 1:
            return found
        _, place = min(candidates)
        length = left[heavy].pop(place)
        loads[heavy] -= length
        loads[light] += length
        # What has moved stays, so that no sequence goes twice.
        found.append((heavy, place, light))


def balanced(sequences: list[Sequence], parallel: Parallel) -> list[Sequence]:
    """This replica's share of an update after the moves; a collective over replicas."""
    if parallel.data == 1:
        return sequences
    planned = moves(parallel.gather_over_data([len(sequence) for sequence in sequences]))
    if not planned:
        return sequences
    mine = parallel.data_rank
    leaving = {place: sequences[place] for source, place, _ in planned if source == mine}
    sent = parallel.gather_over_data(leaving)
    staying = [sequence for place, sequence in enumerate(sequences) if place not in leaving]
    return staying + [sent[source][place] for source, place, target in planned if target == mine]
