"""Rollout engines behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aapa.engine.rollout.base import Rollout, RolloutEngine, sample_seed

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from aapa.engine.policy.megatron import MegatronPolicy

__all__ = ["Rollout", "RolloutEngine", "build_engine", "chosen_engine", "sample_seed"]

ENGINES = ("transformers", "megatron")


class Replicated(Protocol):
    """A layout, of a run or of a plan."""

    @property
    def replica(self) -> int:
        """Ranks of a replica."""


def chosen_engine(name: str, layout: Replicated) -> str:
    """What "auto" means in a layout: "megatron" where the ranks of a replica share the weights or the work.

    Raises:
        UserError: an unknown name.
    """
    from aapa.engine.errors import UserError

    if name == "auto":
        return "megatron" if layout.replica > 1 else "transformers"
    if name not in ENGINES:
        raise UserError(f"rollout.engine: expected 'auto', 'transformers' or 'megatron', got {name!r}")
    return name


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
    policy: MegatronPolicy | None = None,
) -> RolloutEngine:
    """The engine of a name that `chosen_engine` gave; "megatron" needs the policy.

    Raises:
        UserError: an unknown name, or a model above the memory bound of an engine with a second copy of the weights.
    """
    from aapa.engine.errors import UserError

    if name == "megatron" and policy is not None:
        from aapa.engine.rollout.megatron import MegatronEngine

        return MegatronEngine(policy, eos=eos, max_batch=max_batch)
    if name not in ("auto", "transformers"):
        raise UserError(f"rollout.engine: expected 'auto' or 'transformers' without a policy, got {name!r}")
    from aapa.engine.rollout.transformers import TransformersEngine

    return TransformersEngine(
        hf, eos=eos, pad=pad, dtype=dtype, device=device, max_batch=max_batch, memory_limit_gb=memory_limit_gb
    )
