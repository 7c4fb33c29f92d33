"""Token-weighted policy loss from log-probs, for stacks that have log-probs already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.checks import check_shape
from aapa.kernels.dispatch import run
from aapa.kernels.fields import TokenFields, TokenLossSpec, check_components

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
    """Weighted sum of the token losses of all components, differentiable in `logprob_T` (and in `entropy_T`).

    L = sum_t  rl_w * surrogate(rho, A)              METHOD (3.3) with A the group advantage
             + adv_w * surrogate(rho, B)             the anchor (3.3), B the centred anchor score
             + kl_w * k(d) [* rho]                   d = ref - logp; k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1
             + sft_w * -logp [* sg(p (1 - p))]       with phi: CHORD-phi
             + custom_w * custom_loss                                                                  (4.1)
    surrogate "clip":   -min(min(rho, delta) A, clip(rho) A), clip to [1 - clip_low, 1 + clip_high];
    surrogate "cispo":  -sg(clip(rho)) A logp;
    both times `correction_T`, a constant. The two surrogates keep separate accumulators: clipping depends on the sign
    of its own advantage.
    rho = exp(logp - old). With ratio_level "sequence" it is exp(mean of logp - old over the sequence's tokens); the
    gradient is that of the mean in rl and kl, and that of the token's own logp in adv, whose advantages differ
    between the sentences of a response.

    Args:
        logprob_T: [T] float, log-prob of `fields.target_T` at its temperature.
        entropy_T: [T] float or None; enters the metrics, and a custom loss.
        fields: per-token inputs; see `TokenFields`.
        spec: scalars and flags.
        backend: "auto" | "triton" | "reference".

    Returns:
        The scalar loss and detached **sums** over tokens, so that they add up over micro-batches and ranks
        ("max/…" are maxima):
        `loss/<component>`; over tokens with weight in rl, adv or kl, or of rollouts in custom: `sum/tokens`,
        `sum/ratio`, `max/log_ratio`,
        `sum/kl_old` (k1 against the rollout policy), `sum/entropy`; `sum/rl_clipped_low`, `sum/rl_clipped_high` and
        the same for adv; `sum/kl_ref` (k3 against the reference, without its coefficient); `sum/prob_error`,
        `max/prob_error` (|p_old - p_rollout|) with `rollout_logprob_T`; `sum/correction`, `sum/correction_masked` with
        `correction_T`; `sum/phi` with phi.

    Raises:
        ValueError: shapes that do not belong together; ratio_level "sequence" without `sequence_T`; a custom weight
            without a custom loss, and what a custom loss must not return.

    Source: the surrogate is PPO's (Schulman et al. 2017) as in GRPO (Shao et al. 2024); dual clip Ye et al. 2020;
    sequence ratios GSPO (Zheng et al. 2025); cispo MiniMax-M1 (2025); k1-k3 are Schulman's estimators, the corrected
    KL DeepSeek-V3.2's; phi is CHORD's (Zhang et al. 2025).
    """
    for name, value in (("logprob_T", logprob_T), ("entropy_T", entropy_T)):
        if value is not None:
            check_shape(name, value, tuple(fields.target_T.shape))
    check_components(fields, spec)
    loss, metrics = run("policy_loss", backend, logprob_T.device, logprob_T, entropy_T, fields, spec)
    return loss, metrics
