"""Rollout engines behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.engine.rollout.base import Rollout, RolloutEngine, sample_seed

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

__all__ = ["Rollout", "RolloutEngine", "build_engine", "sample_seed"]


def build_engine(
    name: str,
    hf: PretrainedConfig,
    *,
    eos: int,
    pad: int,
    dtype: torch.dtype,
    device: torch.device,
    max_batch: int,
    memory_limit_gb: float,
) -> RolloutEngine:
    """The engine of a name in the recipe ("auto" is "transformers").

    Raises:
        UserError: an unknown name, or a model above the memory bound.
    """
    from aapa.engine.errors import UserError
    from aapa.engine.rollout.transformers import TransformersEngine

    if name not in ("auto", "transformers"):
        raise UserError(f"rollout.engine: expected 'auto' or 'transformers', got {name!r}")
    return TransformersEngine(
        hf, eos=eos, pad=pad, dtype=dtype, device=device, max_batch=max_batch, memory_limit_gb=memory_limit_gb
    )
