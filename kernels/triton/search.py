"""Where a token or a piece of work belongs among offsets: binary searches inside a kernel, so that nobody waits.

Work on spans of very different lengths is cut into pieces of at most LENGTH. Span k, [offsets[k], offsets[k + 1]), has
the pieces offsets[k] // LENGTH + k, and following: numbers that no two spans share, since a span of n has no more than
n // LENGTH + 1 pieces, and that nobody has to add up. `pieces` is how many programs that takes; a few do nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


def pieces(length: int, spans: int, most: int) -> int:
    """Programs that cover spans of `length` together, in pieces of at most `most`."""
    return length // most + spans


def steps(count: int) -> int:
    """Halvings that a search among `count` takes."""
    return count.bit_length() + 1


@triton.jit
def first_not_below(offsets, low, high, value, steps):
    """Smallest k in [low, high] with offsets[k] >= value, `high` if there is none; int32, of the shape of `value`."""
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        below = open_ & (tl.load(offsets + middle, mask=open_, other=0) < value)
        low, high = tl.where(below, middle + 1, low), tl.where(open_ & (below == 0), middle, high)
    return low


@triton.jit
def owner_of_piece(offsets, spans, piece, LENGTH: tl.constexpr, steps):
    """(span of the piece, begin and end of the piece); the end is not behind the begin where there is nothing to do."""
    low = piece * 0
    high = low + spans
    # Largest k with offsets[k] // LENGTH + k <= piece.
    for _ in range(steps):
        middle = (low + high) // 2
        below = tl.load(offsets + middle).to(tl.int32) // LENGTH + middle <= piece
        open_ = low + 1 < high
        low, high = tl.where(open_ & below, middle, low), tl.where(open_ & (below == 0), middle, high)
    begin = tl.load(offsets + low).to(tl.int32)
    end = tl.load(offsets + low + 1).to(tl.int32)
    start = begin + (piece - begin // LENGTH - low) * LENGTH
    return low, start, tl.minimum(start + LENGTH, end)
