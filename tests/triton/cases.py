"""Inputs and checks that the tests of the kernels share."""

from __future__ import annotations

import contextlib
from typing import Any

import sanitizer
import torch
import triton
from torch import Tensor

from aapa.kernels.fields import TokenFields, TokenLossSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative error in float64. Triton 3.6 and 3.7 round Python's numbers to float32, and so does a GPU's launch.
EXACT = 1e-11 if DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 1e-6
SPECS = {
    "clip": TokenLossSpec(clip_low=0.1, clip_high=0.28),
    "dual clip, k2, phi": TokenLossSpec(delta=1.5, kl="k2", phi=True),
    "cispo, corrected k1": TokenLossSpec(surrogate="cispo", kl="k1", kl_correction=True),
    "sequence": TokenLossSpec(ratio_level="sequence", clip_high=0.05, clip_low=0.05),
    "sequence, cispo, corrected k3": TokenLossSpec(ratio_level="sequence", surrogate="cispo", kl_correction=True),
}


def in_order(order: str = "normal") -> Any:
    """Under the sanitizer with programs in this order; on a GPU the hardware chooses."""
    return contextlib.nullcontext() if DEVICE == "cuda" else sanitizer.sanitize(order)


def token_fields(tokens: int, seed: int, masked: float = 0.3) -> tuple[Tensor, Tensor, TokenFields]:
    """(log-probs, entropies, fields of all components), float64, off-policy, some sequences, some tokens in none."""
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(tokens, generator=g, dtype=torch.float64).to(DEVICE)

    def weight() -> Tensor:
        keep = torch.rand(tokens, generator=g) >= masked
        return (torch.rand(tokens, generator=g).double() * keep).to(DEVICE)

    logprob_T = -2 * normal().abs()
    # An engine that does not know a log-prob gives NaN.
    rollout_T = torch.where(torch.rand(tokens, generator=g).to(DEVICE) < 0.1, torch.nan, logprob_T + 0.1 * normal())
    fields = TokenFields(
        target_T=torch.zeros(tokens, dtype=torch.long, device=DEVICE),
        rl_weight_T=weight(),
        kl_weight_T=weight(),
        sft_weight_T=weight(),
        adv_weight_T=weight(),
        advantage_T=normal(),
        anchor_advantage_T=normal(),
        old_logprob_T=logprob_T + 0.3 * normal(),
        ref_logprob_T=logprob_T + 0.5 * normal(),
        correction_T=normal().clamp(min=0),
        rollout_logprob_T=rollout_T,
        sequence_T=torch.randint(-1, 4, (tokens,), generator=g).to(DEVICE),
    )
    return logprob_T, normal().abs(), fields


def half_precision_products(monkeypatch: Any) -> None:
    """Products as a GPU has them, half precision in and float32 out, which torch has on CUDA alone."""

    def mm(left: Tensor, right: Tensor, out_dtype: Any = None, out: Any = None) -> Tensor:
        found = left.to(out.dtype) @ right.to(out.dtype)
        return out.copy_(found)

    def addmm(total: Tensor, left: Tensor, right: Tensor, out_dtype: Any = None, out: Any = None) -> Tensor:
        return out.copy_(total + left.to(out.dtype) @ right.to(out.dtype))

    monkeypatch.setattr("aapa.kernels.chunked.shard.operand_dtype", lambda hidden, weight: hidden.dtype)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
