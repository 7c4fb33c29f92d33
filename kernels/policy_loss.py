"""Token-weighted policy loss from log-probs, for stacks that have log-probs already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.dispatch import resolve
from aapa.kernels.fields import TokenFields, TokenLossSpec

if TYPE_CHECKING:
    from torch import Tensor


def policy_loss(
    logprob_T: Tensor,
    entropy_T: Tensor | None,
    fields: TokenFields,
    spec: TokenLossSpec,
    *,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the token losses of all components, differentiable in `logprob_T`.

    L = sum_t  rl_w * -min(rho A, clip(rho) A)            surrogate, METHOD (3.3) with A the group advantage
             + adv_w * -min(rho B, clip(rho) B)           the anchor (3.3), B the centred anchor score
             + kl_w * (exp(d) - d - 1),  d = ref - logp   k3 estimator
             + sft_w * -logp                              (4.1)
    rho = exp(logp - old), clip to [1 - clip_low, 1 + clip_high]. The two surrogates keep separate accumulators:
    clipping depends on the sign of its own advantage.

    Args:
        logprob_T: [T] float, log-prob of `fields.target_T` at its temperature.
        entropy_T: [T] float or None; enters the metrics only.
        fields: per-token inputs; see `TokenFields`.
        spec: scalars and flags.
        backend: "auto" | "reference".

    Returns:
        The scalar loss and detached **sums** over tokens, so that they add up over micro-batches and ranks:
        `loss/<component>`, and over tokens with weight in rl or adv: `sum/tokens`, `sum/ratio`, `sum/clipped`,
        `sum/kl_old` (k1 estimate against the rollout policy), `sum/entropy`; `max/log_ratio` is a maximum.

    Source: the surrogate is PPO's (Schulman et al. 2017) as in GRPO (Shao et al. 2024); k3 is Schulman's estimator.
    """
    return resolve("policy_loss", backend).policy_loss(logprob_T, entropy_T, fields, spec)
