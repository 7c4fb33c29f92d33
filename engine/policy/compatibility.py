"""Lets megatron-core 0.16.1 run on a machine without CUDA, over gloo. Does nothing where CUDA exists.

Megatron-core names the CUDA device in a few places that its logic does not need: device="cuda" in factories, the
current device, RNG state, and assertions that compare `tensor.type()` with "torch.cuda.FloatTensor". Each replacement
below stands in for a call that raises without it; nothing that works is changed, and except for two methods of
`torch.Tensor` everything is visible to `megatron.core` alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_FACTORIES = ("zeros", "ones", "empty", "tensor", "arange", "full")
# Imported before patching, so that every module that names `torch` is there to be patched.
_MODULES = (
    "megatron.core.tensor_parallel",
    "megatron.core.pipeline_parallel",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.dist_checkpointing.strategies.torch",
)
_CPU = torch.device("cpu")


class _View(ModuleType):
    """A module with a few names replaced, for the eyes of one package."""

    def __init__(self, real: ModuleType, **replaced: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(replaced, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _torch_without_cuda() -> _View:
    cuda = _View(
        torch.cuda,
        current_device=lambda: _CPU,
        synchronize=_nothing,
        manual_seed=torch.manual_seed,
        get_rng_state=lambda *args, **kwargs: torch.get_rng_state(),
        memory_stats=lambda *args, **kwargs: {},
    )
    cuda.__dict__["random"] = cuda  # torch.cuda.random has the RNG functions under the same names
    return _View(torch, cuda=cuda, **{name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})


def _patch_tensor_methods() -> None:
    """`Tensor.cuda` (tied embeddings) and `Tensor.type` (optimizer assertions), as megatron.core sees them."""
    if getattr(torch.Tensor.type, "aapa_compatibility", False):
        return
    plain_type, plain_cuda = torch.Tensor.type, torch.Tensor.cuda

    def called_by_megatron() -> bool:
        return str(sys._getframe(2).f_globals.get("__name__", "")).startswith("megatron.core")

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = plain_type(self, *args, **kwargs)
        if isinstance(result, str) and called_by_megatron():
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    def cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if called_by_megatron() else plain_cuda(self, *args, **kwargs)

    type_.aapa_compatibility = True  # type: ignore[attr-defined]
    torch.Tensor.type, torch.Tensor.cuda = type_, cuda  # type: ignore[assignment,method-assign]


def install() -> None:
    """Patch megatron.core where there is no CUDA; safe to call again."""
    if torch.cuda.is_available():
        return
    for name in _MODULES:
        importlib.import_module(name)
    view = _torch_without_cuda()
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = view  # type: ignore[attr-defined]
    random = sys.modules["megatron.core.tensor_parallel.random"]
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)  # type: ignore[attr-defined]
    _patch_tensor_methods()
