"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib
from types import ModuleType

BACKENDS = ("auto", "triton", "native", "reference")

# Implementations that exist, fastest first, per operation. `auto` takes the first.
AVAILABLE: dict[str, tuple[str, ...]] = dict.fromkeys(
    (
        "linear_logprob",
        "linear_policy_loss",
        "policy_loss",
        "reference_head",
        "sentence_scores",
        "anchor_advantages",
        "segment_sentences",
    ),
    ("reference",),
)


def resolve(op: str, backend: str = "auto") -> ModuleType:
    """Module that implements `op`; it has a function of the operation's name.

    Raises:
        ValueError: the backend does not exist, or not for this operation. A backend asked for by name is never
            replaced by another.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    available = AVAILABLE[op]
    chosen = available[0] if backend == "auto" else backend
    if chosen not in available:
        raise ValueError(f"backend: expected one of auto, {', '.join(available)} for {op}, got {backend!r}")
    return importlib.import_module(f"aapa.kernels.{chosen}.{op}")
