"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "triton", "native", "reference")

# Implementations that exist, fastest first, per operation. `auto` takes the first that can run on the device.
AVAILABLE: dict[str, tuple[str, ...]] = {
    "linear_logprob": ("triton", "native", "reference"),
    "linear_policy_loss": ("triton", "native", "reference"),
    "policy_loss": ("triton", "reference"),
    "reference_head": ("triton", "native", "reference"),
    "sentence_scores": ("triton", "reference"),
    "anchor_advantages": ("triton", "reference"),
    "segment_sentences": ("native", "reference"),
}

log = logging.getLogger("aapa.kernels")


def resolve(op: str, backend: str = "auto", device: torch.device | None = None) -> ModuleType:
    """Module that implements `op`; it has a function of the operation's name.

    `auto` chooses once per operation and kind of device, and logs its choice.

    Args:
        device: of the tensors; None for the CPU.

    Raises:
        ValueError: the backend does not exist, does not have this operation, or cannot run here; the message says why.
            A backend asked for by name is never replaced by another.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    kind = "cpu" if device is None else device.type
    if backend == "auto":
        return _module(op, _choose(op, kind))
    if backend not in AVAILABLE[op]:
        raise ValueError(f"backend: expected one of auto, {', '.join(AVAILABLE[op])} for {op}, got {backend!r}")
    reason = OBSTACLES[backend](op, kind)
    if reason is not None:
        raise ValueError(f"backend: expected one that can run on {kind}, got {backend!r}: {reason}")
    return _module(op, backend)


@cache
def _module(op: str, backend: str) -> ModuleType:
    return importlib.import_module(f"aapa.kernels.{backend}.{op}")


@cache
def _choose(op: str, kind: str) -> str:
    for backend in AVAILABLE[op]:
        # The interpreter is for tests: it must be asked for.
        if OBSTACLES[backend](op, kind) is None and not (backend == "triton" and kind == "cpu"):
            break
    log.info("%s on %s: %s", op, kind, backend)
    return backend


def _triton_obstacle(op: str, kind: str) -> str | None:
    if kind != "cuda" and not (kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return "Triton's kernels need a GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def _native_obstacle(op: str, kind: str) -> str | None:
    if kind == "cpu":
        return _extension_obstacle()
    if kind == "cuda" and op == "segment_sentences":
        from aapa.kernels.native import cuda

        return cuda.missing()
    return "the C++ operations run on the CPU"


@cache
def _extension_obstacle() -> str | None:
    from aapa.kernels.native import missing

    reason = missing()
    if reason is not None:
        log.warning("operations run on their torch references, which is slower: %s", reason)
    return reason


# Why a backend cannot run an operation on a kind of device, None where it can.
OBSTACLES: dict[str, Callable[[str, str], str | None]] = {
    "triton": _triton_obstacle,
    "native": _native_obstacle,
    "reference": lambda op, kind: None,
}
