"""Disjoint splits by a hash, whatever their sizes and seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def by_hash(key: str, shares: Mapping[str, int]) -> str:
    """Return the one of `shares` that `key` belongs to, each as often as its share says."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % sum(shares.values())
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("the point lies below the sum of the shares")
