"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, wraps
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


def run(op: str, backend: str, device: torch.device, *arguments: Any, **named: Any) -> Any:
    """The operation, by the implementation that `resolve` finds, in its own precision whatever autocast says."""
    implementation = getattr(resolve(op, backend, device), op)
    with without_autocast(device):
        return implementation(*arguments, **named)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `torch.autocast` rounds nothing."""
    import torch

    return torch.autocast(device.type, enabled=False)


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


def _once(function: Callable[..., Any]) -> Any:
    """`cache`, and threads that come together wait for the first: what is logged inside is logged once."""
    cached, lock = cache(function), RLock()

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with lock:
            return cached(*arguments)

    call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return call


@cache
def _module(op: str, backend: str) -> ModuleType:
    return importlib.import_module(f"aapa.kernels.{backend}.{op}")


@_once
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
    return _package_obstacle()


@_once
def _package_obstacle() -> str | None:
    if importlib.util.find_spec("triton") is not None:
        return None
    _warn("Triton is not installed")
    return "Triton is not installed"


def _native_obstacle(op: str, kind: str) -> str | None:
    if kind == "cpu":
        return _extension_obstacle()
    if kind == "cuda" and op == "segment_sentences":
        from aapa.kernels.native import cuda

        return cuda.missing()
    return "the C++ operations run on the CPU"


@_once
def _extension_obstacle() -> str | None:
    from aapa.kernels.native import missing

    reason: str | None = missing()
    if reason is not None:
        _warn(reason)
    return reason


def _warn(reason: str) -> None:
    log.warning("operations run on their torch references, which is slower: %s", reason)


# Why a backend cannot run an operation on a kind of device, None where it can.
OBSTACLES: dict[str, Callable[[str, str], str | None]] = {
    "triton": _triton_obstacle,
    "native": _native_obstacle,
    "reference": lambda op, kind: None,
}
