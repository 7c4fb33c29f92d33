"""`policy_loss` in one kernel: values, slopes and metrics of all components from one read of the vectors.

Shape legend: T tokens, B programs, S sums, N sequences.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from aapa.kernels.fields import COMPONENTS, TokenFields, TokenLossSpec
from aapa.kernels.reference.attach import first_order
from aapa.kernels.reference.policy_loss import custom_values
from aapa.kernels.triton.launch import FUSED, accumulator, power_of_two
from aapa.kernels.triton.token_loss import (
    divergence_terms,
    imitation_slope,
    metric_sums,
    surrogate_terms,
    values,
    weights,
)

TOKENS = 128
WARPS = 4
# What a program sums over its tokens, in the order of the kernel's slots; "max/…" are maxima.
SLOTS = (
    "loss/rl",
    "loss/kl",
    "loss/sft",
    "loss/adv",
    "sum/tokens",
    "sum/ratio",
    "sum/kl_old",
    "sum/rl_clipped_low",
    "sum/rl_clipped_high",
    "sum/adv_clipped_low",
    "sum/adv_clipped_high",
    "sum/entropy",
    "sum/kl_ref",
    "sum/prob_error",
    "sum/correction",
    "sum/correction_masked",
    "sum/phi",
    "max/log_ratio",
    "max/prob_error",
)


@triton.jit
def _policy_tokens(
    logprob_T, entropy_T,
    rl_weight_T, kl_weight_T, sft_weight_T, adv_weight_T, custom_weight_T,
    advantage_T, anchor_advantage_T, old_logprob_T, ref_logprob_T, correction_T, rollout_logprob_T,
    sequence_T, log_ratio_T, grad_T, mean_grad_T, partial_SB, low, high, delta, tokens,
    SURROGATE: tl.constexpr, KL: tl.constexpr, KL_CORRECTION: tl.constexpr, PHI: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Slopes and sums of BLOCK tokens.

    `log_ratio_T` holds the means over sequences at their tokens, None for ratios of tokens. What then has the slope of
    the mean goes to `mean_grad_T`, to be averaged over the sequence.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < tokens
    rl, kl = weights(rl_weight_T, place, inside, ACC), weights(kl_weight_T, place, inside, ACC)
    sft, adv = weights(sft_weight_T, place, inside, ACC), weights(adv_weight_T, place, inside, ACC)
    active = (rl != 0) | (adv != 0) | (kl != 0)
    member = inside
    if sequence_T is not None:
        member = inside & (tl.load(sequence_T + place, mask=inside, other=-1) >= 0)
        active = active | (member & (weights(custom_weight_T, place, inside, ACC) != 0))
    # Positions without weight may hold anything, even minus infinity: nothing is loaded from there.
    logp = values(logprob_T, place, active | (sft != 0), ACC)
    old = logp
    if old_logprob_T is not None:
        old = values(old_logprob_T, place, active, ACC)
    log_ratio = tl.where(active, logp - old, 0.0)
    linked = inside
    if log_ratio_T is not None:
        log_ratio = values(log_ratio_T, place, inside, ACC)
        linked = member
    ratio = tl.exp(log_ratio)
    corrected = tl.full((BLOCK,), 1.0, ACC)
    if correction_T is not None:
        corrected = values(correction_T, place, active, ACC)
    grad = tl.zeros((BLOCK,), ACC)
    mean_grad = tl.zeros((BLOCK,), ACC)
    if rl_weight_T is not None:
        gain = values(advantage_T, place, rl != 0, ACC)
        in_ratio, own = surrogate_terms(
            rl, corrected, ratio, logp, gain, partial_SB, low, high, delta, SURROGATE, 0, 7)  # fmt: skip
        grad, mean_grad = grad + own, mean_grad + in_ratio
    if adv_weight_T is not None:
        gain = values(anchor_advantage_T, place, adv != 0, ACC)
        in_ratio, own = surrogate_terms(
            adv, corrected, ratio, logp, gain, partial_SB, low, high, delta, SURROGATE, 3, 9)  # fmt: skip
        grad += own + tl.where(linked, in_ratio, 0.0)
    if kl_weight_T is not None:
        distance = values(ref_logprob_T, place, kl != 0, ACC) - logp
        in_ratio, own = divergence_terms(kl, ratio, distance, partial_SB, KL, KL_CORRECTION)
        grad, mean_grad = grad + own, mean_grad + in_ratio
    if sft_weight_T is not None:
        grad += imitation_slope(sft, logp, partial_SB, PHI)
    metric_sums(place, active, logp, old, log_ratio, corrected, entropy_T, rollout_logprob_T, partial_SB, ACC)
    if mean_grad_T is None:
        grad += mean_grad
    else:
        tl.store(mean_grad_T + place, tl.where(linked, mean_grad, 0.0), mask=inside)
    tl.store(grad_T + place, grad, mask=inside)


@triton.jit
def _sequence_means(value_T, sequence_T, mean_T, tokens, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Mean over the tokens of one sequence, wherever they lie, at each of them."""
    sequence = tl.program_id(0)
    total = tl.zeros((BLOCK,), ACC)
    count = tl.zeros((BLOCK,), ACC)
    for first in range(0, tokens, BLOCK):
        place = first + tl.arange(0, BLOCK)
        own = tl.load(sequence_T + place, mask=place < tokens, other=-1) == sequence
        total += values(value_T, place, own, ACC)
        count += tl.where(own, 1.0, 0.0)
    mean = tl.sum(total, 0) / tl.maximum(tl.sum(count, 0), 1.0)
    for first in range(0, tokens, BLOCK):
        place = first + tl.arange(0, BLOCK)
        own = tl.load(sequence_T + place, mask=place < tokens, other=-1) == sequence
        tl.store(mean_T + place, tl.zeros((BLOCK,), ACC) + mean, mask=own)


def sequence_means(value_T: Tensor, sequence_T: Tensor, sequences: int) -> Tensor:
    """[T] mean over the tokens of equal `sequence_T`, at each of them; 0 where it is -1."""
    mean_T = torch.zeros_like(value_T)
    tokens = value_T.shape[0]
    if sequences:
        _sequence_means[(sequences,)](
            value_T,
            sequence_T,
            mean_T,
            tokens,
            BLOCK=power_of_two(tokens, 16, 1024),
            ACC=accumulator(value_T.dtype),
            num_warps=WARPS,
            **FUSED,
        )
    return mean_T


def policy_terms(
    logprob_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(loss, metrics, dL/dlogprob [T]) of all components but the custom one; no gradient."""
    tokens, like = logprob_T.shape[0], logprob_T
    entropy_T = None if entropy_T is None else entropy_T.detach()
    blocks = triton.cdiv(tokens, TOKENS)
    partial_SB = like.new_zeros(len(SLOTS), max(1, blocks))
    grad_T = like.new_empty(tokens)
    log_ratio_T = mean_grad_T = None
    sequences = 0
    if spec.ratio_level == "sequence":
        if fields.sequence_T is None:
            raise ValueError("sequence_T: expected a tensor with ratio_level 'sequence', got None")
        mean_grad_T = like.new_empty(tokens)
        sequences = int(fields.sequence_T.max()) + 1 if tokens else 0
        old_T = logprob_T if fields.old_logprob_T is None else fields.old_logprob_T.to(logprob_T.dtype)
        log_ratio_T = sequence_means(logprob_T - old_T, fields.sequence_T, sequences)
    if tokens:
        vectors = [logprob_T, entropy_T, *(fields.weight(name) for name in ("rl", "kl", "sft", "adv", "custom"))]
        vectors += [fields.advantage_T, fields.anchor_advantage_T, fields.old_logprob_T, fields.ref_logprob_T]
        vectors += [fields.correction_T, fields.rollout_logprob_T, fields.sequence_T, log_ratio_T]
        _policy_tokens[(blocks,)](
            *(None if vector is None else vector.contiguous() for vector in vectors),
            grad_T,
            mean_grad_T,
            partial_SB,
            1.0 - spec.clip_low,
            1.0 + spec.clip_high,
            spec.delta,
            tokens,
            SURROGATE=spec.surrogate,
            KL=spec.kl,
            KL_CORRECTION=spec.kl_correction,
            PHI=spec.phi,
            BLOCK=TOKENS,
            ACC=accumulator(logprob_T.dtype),
            num_warps=WARPS,
            **FUSED,
        )
    if mean_grad_T is not None and fields.sequence_T is not None:
        grad_T += sequence_means(mean_grad_T, fields.sequence_T, sequences)
    return *_combined(partial_SB, entropy_T is not None, fields, spec), grad_T


def _combined(
    partial_SB: Tensor, has_entropy: bool, fields: TokenFields, spec: TokenLossSpec
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics from the programs' sums."""
    total_S, largest_S = partial_SB.sum(1), partial_SB.amax(1)
    figure = {name: (largest_S if name.startswith("max/") else total_S)[slot] for slot, name in enumerate(SLOTS)}
    used = {name for name in COMPONENTS if fields.weight(name) is not None}
    wanted = [f"loss/{name}" for name in COMPONENTS if name in used and name != "custom"]
    loss = sum((figure[name] for name in wanted), start=partial_SB.new_zeros(()))
    wanted += ["sum/tokens", "sum/ratio", "sum/kl_old", "max/log_ratio"]
    wanted += [f"sum/{name}_clipped_{side}" for name in ("rl", "adv") if name in used for side in ("low", "high")]
    optional = {
        "sum/entropy": has_entropy,
        "sum/kl_ref": "kl" in used,
        "sum/prob_error": fields.rollout_logprob_T is not None,
        "max/prob_error": fields.rollout_logprob_T is not None,
        "sum/correction": fields.correction_T is not None,
        "sum/correction_masked": fields.correction_T is not None,
        "sum/phi": spec.phi and "sft" in used,
    }
    wanted += [name for name, there in optional.items() if there]
    return loss, {name: figure[name] for name in wanted}


def custom_term(logprob_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec) -> Tensor | None:
    """Weighted sum of the user's own loss, differentiable; None without one."""
    weight_T = fields.custom_weight_T
    if weight_T is None:
        return None
    rows_R = weight_T.nonzero()[:, 0]
    value_R = custom_values(rows_R, logprob_T[rows_R], entropy_T, fields, spec)
    return (weight_T[rows_R].to(logprob_T.dtype) * value_R).sum()


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, logprob_T: Tensor, loss: Tensor, grad_T: Tensor) -> Tensor:
        ctx.save_for_backward(grad_T)
        return loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (grad_T,) = ctx.saved_tensors
        return grad_T * upstream, None, None


def policy_loss(
    logprob_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        value, metrics, grad_T = policy_terms(logprob_T.detach(), entropy_T, fields, spec)
    loss: Tensor = _WithGradient.apply(logprob_T, value, grad_T)
    term = custom_term(logprob_T, entropy_T, fields, spec)
    if term is not None:
        loss = loss + term
        metrics["loss/custom"] = term.detach()
    return loss, metrics
