"""Value and slope of the loss's components at a token; see `aapa.kernels.policy_loss` for the formulas.

These are the device functions of `policy_loss`. A slope is with respect to the token's log-prob.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp_less_first_order(x):
    """exp(x) - 1 - x without cancellation near 0, where the k3 estimate lives."""
    term = tl.full(x.shape, 1.0, x.dtype)
    # Horner's form of x^2 / 2! + … + x^14 / 14!, exact to 1e-15 where it is used.
    for n in tl.static_range(14, 2, -1):
        term = 1.0 + term * x / n
    return tl.where(tl.abs(x) < 0.5, 0.5 * x * x * term, tl.exp(x) - 1.0 - x)


@triton.jit
def surrogate(
    ratio,
    logp,
    advantage,
    low,
    high,
    delta,
    KIND: tl.constexpr,
):
    """(value, slope in log ratio, slope in log-prob) of (3.3), or of CISPO.

    Where plain and clipped term are equal each has half of the slope, as in autograd's minimum; `low` and `high` are
    the bounds themselves.
    """
    # Comparisons, not minimum and maximum: those would turn a NaN into a bound, and hide it.
    clipped = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
    zero = tl.full(ratio.shape, 0.0, ratio.dtype)
    if KIND == "cispo":
        value, in_ratio, own = -clipped * advantage * logp, zero, -clipped * advantage
    else:
        slope = ratio * advantage
        clipped_slope = tl.where((ratio < low) | (ratio > high), 0.0, slope)
        plain, plain_slope = slope, slope
        if delta is not None:
            plain = tl.where(ratio > delta, delta, ratio) * advantage
            plain_slope = tl.where(ratio > delta, 0.0, slope)
        other = clipped * advantage
        even = 0.5 * (plain_slope + clipped_slope)
        chosen = tl.where(plain < other, plain_slope, tl.where(plain > other, clipped_slope, even))
        value, in_ratio, own = -tl.where(plain > other, other, plain), -chosen, zero
    return value, in_ratio, own


@triton.jit
def divergence(difference, KIND: tl.constexpr):
    """(value, slope in log-prob) of k1, k2 or k3; `difference` = ref_logprob - logprob."""
    if KIND == "k1":
        value, slope = -difference, tl.full(difference.shape, 1.0, difference.dtype)
    elif KIND == "k2":
        value, slope = 0.5 * difference * difference, -difference
    else:
        value = exp_less_first_order(difference)
        slope = -(value + difference)
    return value, slope


@triton.jit
def weights(pointer, place, inside, ACC: tl.constexpr):
    """A component's weights at some tokens, 0 where it does not exist."""
    found = tl.zeros(place.shape, ACC)
    if pointer is not None:
        found = tl.load(pointer + place, mask=inside, other=0.0).to(ACC)
    return found


@triton.jit
def values(pointer, place, wanted, ACC: tl.constexpr):
    """Values at the tokens that are wanted, 0 elsewhere: positions without weight may hold anything."""
    return tl.load(pointer + place, mask=wanted, other=0.0).to(ACC)


@triton.jit
def add_up(partial, slot: tl.constexpr, chosen, value):
    """Writes the program's sum of the values at the chosen tokens to its place in row `slot` of [S, B]."""
    total = tl.sum(tl.where(chosen, value, 0.0), 0)
    tl.store(partial + slot * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def surrogate_terms(
    weight, corrected, ratio, logp, advantage, partial, low, high, delta,
    KIND: tl.constexpr, LOSS: tl.constexpr, CLIPPED: tl.constexpr,
):  # fmt: skip
    """(slope in log ratio, slope in log-prob) of a surrogate's weighted loss; its sums go to slots LOSS and CLIPPED."""
    chosen = weight != 0
    value, in_ratio, own = surrogate(ratio, logp, advantage, low, high, delta, KIND)
    add_up(partial, LOSS, chosen, weight * corrected * value)
    add_up(partial, CLIPPED, chosen & (ratio < low) & (advantage < 0), tl.full(ratio.shape, 1.0, ratio.dtype))
    add_up(partial, CLIPPED + 1, chosen & (ratio > high) & (advantage > 0), tl.full(ratio.shape, 1.0, ratio.dtype))
    factor = weight * corrected
    return tl.where(chosen, factor * in_ratio, 0.0), tl.where(chosen, factor * own, 0.0)


@triton.jit
def divergence_terms(weight, ratio, distance, partial, KIND: tl.constexpr, CORRECTED: tl.constexpr):
    """(slope in log ratio, slope in log-prob) of the weighted divergence; its sums go to slots 1 and 12."""
    chosen = weight != 0
    value, slope = divergence(distance, KIND)
    in_ratio = tl.full(ratio.shape, 0.0, ratio.dtype)
    if CORRECTED:
        value, slope = value * ratio, slope * ratio
        in_ratio = tl.where(chosen, weight * value, 0.0)
    add_up(partial, 1, chosen, weight * value)
    add_up(partial, 12, chosen, exp_less_first_order(distance))
    return in_ratio, tl.where(chosen, weight * slope, 0.0)


@triton.jit
def imitation_slope(weight, logp, partial, PHI: tl.constexpr):
    """Slope in log-prob of -weight log p, with PHI times sg[p (1 - p)]; sums go to slots 2 and 16."""
    chosen = weight != 0
    phi = tl.full(logp.shape, 1.0, logp.dtype)
    if PHI:
        p = tl.exp(logp)
        phi = p * (1.0 - p)
        add_up(partial, 16, chosen, phi)
    add_up(partial, 2, chosen, -weight * phi * logp)
    return tl.where(chosen, -weight * phi, 0.0)


@triton.jit
def metric_sums(
    place,
    active,
    logp,
    old,
    log_ratio,
    corrected,
    entropy_T,
    rollout_logprob_T,
    partial,
    ACC: tl.constexpr,
):
    """Sums over the active tokens, to the slots of `policy_loss.SLOTS`."""
    one = tl.full(place.shape, 1.0, ACC)
    add_up(partial, 4, active, one)
    add_up(partial, 5, active, tl.exp(log_ratio))
    add_up(partial, 6, active, old - logp)
    if entropy_T is not None:
        add_up(partial, 11, active, values(entropy_T, place, active, ACC))
    add_up(partial, 14, active, corrected)
    add_up(partial, 15, active & (corrected == 0), one)
    # A maximum passes over NaN on a GPU.
    largest = tl.max(tl.where(active, tl.abs(log_ratio), 0.0), 0)
    unknown = tl.max((active & (log_ratio != log_ratio)).to(tl.int32), 0)
    largest = tl.where(unknown > 0, float("nan"), largest)
    tl.store(partial + 17 * tl.num_programs(0) + tl.program_id(0), largest)
    if rollout_logprob_T is not None:
        rollout = values(rollout_logprob_T, place, active, ACC)
        error = tl.abs(tl.exp(old) - tl.exp(rollout))
        # What the engine does not know (NaN) counts as no error.
        known = active & (error == error)
        add_up(partial, 13, known, error)
        largest = tl.max(tl.where(known, error, 0.0), 0)
        tl.store(partial + 18 * tl.num_programs(0) + tl.program_id(0), largest)
