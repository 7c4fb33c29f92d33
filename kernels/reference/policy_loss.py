"""Reference of `policy_loss`. Shape legend: T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.fields import COMPONENTS, TokenFields, TokenLossSpec


def policy_loss(
    logprob_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> tuple[Tensor, dict[str, Tensor]]:
    old_T = logprob_T.detach() if fields.old_logprob_T is None else fields.old_logprob_T.to(logprob_T.dtype)
    loss = logprob_T.new_zeros(())
    metrics: dict[str, Tensor] = {}
    for component in COMPONENTS:
        weight_T = fields.weight(component)
        if weight_T is None:
            continue
        value_T = _component(component, logprob_T, old_T, fields, spec)
        # Zero-weight positions (prompts, padding) may hold anything, even inf: select, do not multiply.
        term = torch.where(weight_T != 0, weight_T.to(logprob_T.dtype) * value_T, 0.0).sum()
        loss = loss + term
        metrics[f"loss/{component}"] = term.detach()
    metrics.update(_ratio_metrics(logprob_T.detach(), old_T, entropy_T, fields, spec))
    return loss, metrics


def _component(name: str, logprob_T: Tensor, old_T: Tensor, fields: TokenFields, spec: TokenLossSpec) -> Tensor:
    if name == "sft":
        return -logprob_T
    if name == "kl":
        assert fields.ref_logprob_T is not None and fields.kl_weight_T is not None
        active_T = fields.kl_weight_T != 0
        difference_T = torch.where(active_T, fields.ref_logprob_T.to(logprob_T.dtype) - logprob_T, 0.0)
        return torch.expm1(difference_T) - difference_T
    weight_T = fields.weight(name)
    advantage_T = fields.advantage_T if name == "rl" else fields.anchor_advantage_T
    assert weight_T is not None and advantage_T is not None
    # The ratio of a position that is masked must not reach the gradient as 0 * inf.
    log_ratio_T = torch.where(weight_T != 0, logprob_T - old_T, 0.0)
    ratio_T = log_ratio_T.exp()
    clipped_T = ratio_T.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    advantage_T = torch.where(weight_T != 0, advantage_T.to(logprob_T.dtype), 0.0)
    return -torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)


@torch.no_grad()
def _ratio_metrics(
    logprob_T: Tensor, old_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> dict[str, Tensor]:
    """Sums over the rollout tokens, those with weight in rl or adv."""
    active_T = torch.zeros_like(logprob_T, dtype=torch.bool)
    for weight_T in (fields.rl_weight_T, fields.adv_weight_T):
        if weight_T is not None:
            active_T |= weight_T != 0
    log_ratio_T = torch.where(active_T, logprob_T - old_T, 0.0)
    ratio_T = log_ratio_T.exp()
    advantage_T = fields.advantage_T if fields.advantage_T is not None else fields.anchor_advantage_T
    metrics = {
        "sum/tokens": active_T.sum().to(logprob_T.dtype),
        "sum/ratio": torch.where(active_T, ratio_T, 0.0).sum(),
        "sum/kl_old": -log_ratio_T.sum(),
        "max/log_ratio": log_ratio_T.abs().amax() if log_ratio_T.numel() else log_ratio_T.new_zeros(()),
    }
    if advantage_T is not None:
        above_T = (ratio_T > 1.0 + spec.clip_high) & (advantage_T > 0)
        below_T = (ratio_T < 1.0 - spec.clip_low) & (advantage_T < 0)
        metrics["sum/clipped"] = ((above_T | below_T) & active_T).sum().to(logprob_T.dtype)
    if entropy_T is not None:
        metrics["sum/entropy"] = torch.where(active_T, entropy_T, 0.0).sum()
    return metrics
