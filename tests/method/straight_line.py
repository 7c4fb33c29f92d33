"""The objectives in their most literal form, loops over sequences and tokens, and ragged batches to try them on.

Written from docs/method.md alone; nothing here looks at `aapa.kernels`. Everything is float64, and autograd makes the
gradients. One thing is not literal: `pack` stores each token's weight (coefficient x aggregation weight / count) as
float32 by design, so `rounded` does the same here. All else has to agree to 1e-10.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aapa import CHORD, GRPO, SFT, Anchor, Objective
from aapa.batch import Sequence
from aapa.importance import importance_correction


def rounded(weight: float) -> float:
    return float(torch.tensor(weight, dtype=torch.float32))


def kept(sequence: Sequence) -> list[int]:
    """Places of the response's unmasked tokens."""
    return [t for t in range(len(sequence.response)) if sequence.mask is None or bool(sequence.mask[t])]


def spoken_of(sequence: Sequence, t: int) -> bool:
    """Whether the anchor speaks of a token."""
    return sequence.anchored and (sequence.anchor_mask is None or bool(sequence.anchor_mask[t]))


def alive(sequences: list[Sequence], role: str) -> list[Sequence]:
    """Sequences that count: those with an unmasked token."""
    return [s for s in sequences if s.role == role and kept(s)]


def aggregation_weight(sequences: list[Sequence], sequence: Sequence, kind: str, longest: int | None) -> float:
    rollouts = alive(sequences, "rollout")
    if kind == "dapo":
        return 1 / sum(len(kept(s)) for s in rollouts)
    if kind == "grpo":
        return 1 / (len(rollouts) * len(kept(sequence)))
    assert longest is not None
    return 1 / (len(rollouts) * longest)


def old_at(sequence: Sequence, logprob: Tensor, t: int) -> Tensor:
    """log pi_old; with a single update that is pi itself, without a gradient."""
    return logprob[t].detach() if sequence.old_logprob is None else sequence.old_logprob[t]


def token_ratio(sequence: Sequence, logprob: Tensor, t: int) -> Tensor:
    return torch.exp(logprob[t] - old_at(sequence, logprob, t))


def sequence_ratio(sequence: Sequence, logprob: Tensor) -> Tensor:
    """Geometric mean of the ratios of the unmasked tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for t in kept(sequence):
        total = total + logprob[t] - old_at(sequence, logprob, t)
    return torch.exp(total / len(kept(sequence)))


def surrogate(ratio: Tensor, advantage: float, logprob_t: Tensor, objective: Objective) -> Tensor:
    """(3.3), with the upper limit delta of the unclipped ratio; or CISPO."""
    o = objective
    low, high = 1 - getattr(o, "clip_low", 0.2), 1 + getattr(o, "clip_high", 0.2)
    if getattr(o, "surrogate", "clip") == "cispo":
        return -min(max(float(ratio.detach()), low), high) * advantage * logprob_t
    delta = getattr(o, "delta", None)
    # A constant in place of the ratio has no gradient.
    limited = ratio if delta is None or ratio <= delta else ratio.detach() * 0 + delta
    clipped = ratio
    if ratio < low:
        clipped = ratio.detach() * 0 + low
    elif ratio > high:
        clipped = ratio.detach() * 0 + high
    return -(limited * advantage if limited * advantage <= clipped * advantage else clipped * advantage)


def divergence(sequence: Sequence, logprob: Tensor, t: int, kind: str) -> Tensor:
    """Schulman's estimators of KL(pi || ref)."""
    assert sequence.ref_logprob is not None
    d = sequence.ref_logprob[t] - logprob[t]
    if kind == "k1":
        return logprob[t] - sequence.ref_logprob[t]
    return d * d / 2 if kind == "k2" else torch.exp(d) - d - 1


def anchor_coefficient(anchor: Anchor | None, step: int) -> float:
    return anchor.weight_at(step) if anchor is not None and anchor.mode == "loss" else 0.0


def grpo_terms(
    sequences: list[Sequence], logprobs: list[Tensor], objective: GRPO, step: int, share: float = 1.0
) -> dict[str, Tensor]:
    """rl, beta KL and lambda adv; `share` multiplies the first two."""
    o, lam = objective, anchor_coefficient(objective.anchor, step)
    rl = kl = adv = torch.zeros((), dtype=torch.float64)
    for s, logprob in zip(sequences, logprobs, strict=True):
        if s.role != "rollout" or not kept(s):
            continue
        weight = aggregation_weight(sequences, s, o.aggregation, o.max_response_length)
        whole = sequence_ratio(s, logprob)
        for t in kept(s):
            ratio = whole if o.ratio_level == "sequence" else token_ratio(s, logprob, t)
            correction = 1.0 if s.correction is None else float(s.correction[t])
            assert s.advantage is not None
            value = surrogate(ratio, float(s.advantage[t]), logprob[t], o)
            rl = rl + rounded(share * weight) * correction * value
            if o.beta > 0:
                estimate = divergence(s, logprob, t, o.kl) * (ratio if o.kl_correction else 1.0)
                kl = kl + rounded(share * (o.beta * weight)) * estimate
            if lam > 0 and spoken_of(s, t):
                if o.ratio_level == "sequence":
                    ratio = whole.detach() * torch.exp(logprob[t] - logprob[t].detach())
                assert s.anchor_advantage is not None
                value = surrogate(ratio, float(s.anchor_advantage[t]), logprob[t], o)
                adv = adv + rounded(lam * weight) * correction * value
    return {"rl": rl, "kl": kl, "adv": adv}


def sft_term(sequences: list[Sequence], logprobs: list[Tensor], coefficient: float, phi: bool) -> Tensor:
    sft = torch.zeros((), dtype=torch.float64)
    experts = alive(sequences, "expert")
    for s, logprob in zip(sequences, logprobs, strict=True):
        if s.role != "expert":
            continue
        for t in kept(s):
            p = math.exp(float(logprob[t].detach()))
            weight = rounded(coefficient / sum(len(kept(e)) for e in experts))
            sft = sft - weight * (p * (1 - p) if phi else 1.0) * logprob[t]
    return sft


def sft_terms(sequences: list[Sequence], logprobs: list[Tensor], objective: SFT, step: int) -> dict[str, Tensor]:
    """SFT on the experts, and the anchor on the rollouts, weighted per sequence and clipped at 0.2."""
    adv = torch.zeros((), dtype=torch.float64)
    lam = anchor_coefficient(objective.anchor, step)
    for s, logprob in zip(sequences, logprobs, strict=True):
        for t in kept(s):
            if s.role == "rollout" and lam > 0 and spoken_of(s, t):
                weight = rounded(lam / (len(alive(sequences, "rollout")) * len(kept(s))))
                assert s.anchor_advantage is not None
                ratio = token_ratio(s, logprob, t)
                adv = adv + weight * surrogate(ratio, float(s.anchor_advantage[t]), logprob[t], objective)
    return {"sft": sft_term(sequences, logprobs, 1.0, False), "adv": adv}


def chord_terms(sequences: list[Sequence], logprobs: list[Tensor], objective: CHORD, step: int) -> dict[str, Tensor]:
    """(1 - mu)(rl + beta KL) + mu SFT + lambda adv."""
    mu = objective.mu if isinstance(objective.mu, float) else objective.mu.at(step)
    terms = grpo_terms(sequences, logprobs, objective, step, share=1 - mu)
    return {**terms, "sft": sft_term(sequences, logprobs, mu, objective.phi)}


def terms_of(
    sequences: list[Sequence], logprobs: list[Tensor], objective: Objective, step: int = 0
) -> dict[str, Tensor]:
    """What each component adds to the loss of the whole batch; `logprobs[i]` is [R_i]."""
    if isinstance(objective, CHORD):
        return chord_terms(sequences, logprobs, objective, step)
    if isinstance(objective, GRPO):
        return grpo_terms(sequences, logprobs, objective, step)
    assert isinstance(objective, SFT)
    return sft_terms(sequences, logprobs, objective, step)


def loss_of(sequences: list[Sequence], logprobs: list[Tensor], objective: Objective, step: int = 0) -> Tensor:
    # The zeros keep a loss without any term differentiable.
    nothing = sum((0.0 * logprob.sum() for logprob in logprobs), torch.zeros((), dtype=torch.float64))
    return sum(terms_of(sequences, logprobs, objective, step).values(), nothing)


def group_advantages(rewards: list[float], groups: list[int], scale: str, eps: float = 1e-4) -> list[float]:
    """(r - mean of the group) / (std + eps), the std with Bessel's correction; NaN takes no part."""

    def deviation(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0

    made = []
    for reward, group in zip(rewards, groups, strict=True):
        if math.isnan(reward):
            made.append(0.0)
            continue
        valid = [r for r in rewards if not math.isnan(r)]
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group and not math.isnan(r)]
        divisor = {"group": deviation(own) + eps, "batch": deviation(valid) + eps, "none": 1.0}[scale]
        # The mean of equal numbers is that number, whatever its rounding.
        made.append((reward - sum(own) / len(own)) / divisor if len(set(own)) > 1 else 0.0)
    return made


def calibrated(score: float, mean: float, std: float, clip: float) -> float:
    """(3.1)"""
    return min(max((score - mean) / std, -clip), clip)


def anchor_values(
    scores: list[list[float]],
    lengths: list[list[int]],
    groups: list[int],
    spoken: list[list[bool]],
    *,
    mean: float,
    std: float,
    clip: float,
    aggregation: str,
    credit: str,
    discount: float,
) -> list[list[float]]:
    """(3.2) of each token of each response; `spoken`: of which sentences of which responses the anchor speaks.

    `scores[i][k]` and `lengths[i][k]` are those of sentence k of response i.
    """
    a = [[calibrated(s, mean, std, clip) for s in row] for row in scores]
    made: list[list[float]] = []
    for i, group in enumerate(groups):
        top = bottom = 0.0
        for j in range(len(groups)):
            if j == i or groups[j] != group:
                continue
            weight = 1 / sum(lengths[j]) if aggregation == "grpo" and lengths[j] else 1.0
            for k, length in enumerate(lengths[j]):
                for _ in range(length):
                    top += weight * a[j][k] * spoken[j][k]
                    bottom += weight * spoken[j][k]
        b = top / bottom if bottom else 0.0
        centred = [(value - b) * speaks for value, speaks in zip(a[i], spoken[i], strict=True)]
        tokens: list[float] = []
        for k, length in enumerate(lengths[i]):
            value = centred[k]
            if credit == "return":
                value = sum(discount ** (later - k) * centred[later] for later in range(k, len(centred)))
            tokens += [value * spoken[i][k]] * length
        made.append(tokens)
    return made


@dataclass(frozen=True)
class Row:
    """A sequence of a batch: its lengths, which of its tokens are masked, and what the anchor speaks of."""

    prompt: int
    response: int
    role: Literal["rollout", "expert"] = "rollout"
    masked: Literal["none", "some", "all"] = "none"
    anchored: Literal["no", "some", "all"] = "all"


# Empty, all masked, partly masked, one token; anchored, not anchored, and anchored in part.
ROLLOUTS = (
    Row(3, 5),
    Row(2, 0),
    Row(1, 3, masked="all"),
    Row(4, 6, masked="some", anchored="some"),
    Row(1, 1, anchored="no"),
    Row(2, 4, anchored="no"),
    Row(3, 1),
    Row(1, 7, anchored="some"),
    Row(2, 5, masked="some"),
)
EXPERTS = (
    Row(2, 4, "expert", anchored="no"),
    Row(1, 0, "expert", anchored="no"),
    Row(3, 5, "expert", masked="some", anchored="no"),
    Row(1, 1, "expert", anchored="no"),
    Row(2, 3, "expert", masked="all", anchored="no"),
)
# Experts and rollouts in turn, so that places in the batch and places among the rollouts differ.
MIXED = tuple(row for pair in zip(ROLLOUTS, EXPERTS, strict=False) for row in pair) + ROLLOUTS[len(EXPERTS) :]


def bare(rows: tuple[Row, ...], seed: int, vocab: int = 11) -> list[Sequence]:
    """Sequences of random tokens without signals."""
    g = torch.Generator().manual_seed(seed)

    def some(size: int) -> Tensor:
        """Half of the tokens, at least one of them."""
        chosen = torch.rand(size, generator=g) < 0.5
        if size:
            chosen[int(torch.randint(0, size, (1,), generator=g))] = True
        return chosen

    return [
        Sequence(
            prompt=torch.randint(0, vocab, (row.prompt,), generator=g),
            response=torch.randint(0, vocab, (row.response,), generator=g),
            role=row.role,
            temperature=0.7 if row.role == "rollout" else 1.0,
            mask={"none": None, "some": some(row.response), "all": torch.zeros(row.response).bool()}[row.masked],
            anchored=row.anchored != "no",
            anchor_mask=some(row.response) if row.anchored == "some" else None,
        )
        for row in rows
    ]


def random_logprobs(sequences: list[Sequence], seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [-2 * torch.randn(len(s.response), generator=g, dtype=torch.float64).abs() for s in sequences]


def with_signals(
    sequences: list[Sequence], logprobs: list[Tensor], objective: Objective, seed: int, *, old: bool = True
) -> list[Sequence]:
    """Rollouts with random signals around their log-probs: ratios on both sides of every bound, at both levels."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for index, (s, logprob) in enumerate(zip(sequences, logprobs, strict=True)):
        if s.role == "expert":
            made.append(s)
            continue

        def normal(scale: float, size: int = len(s.response)) -> Tensor:
            return scale * torch.randn(size, generator=g, dtype=torch.float64)

        # Ratios of whole sequences spread less than those of tokens; hence a shift for each.
        before = logprob.detach() + (0.0, -0.6, -0.3, 0.6)[index % 4] + normal(0.3)
        rollout = before + normal(0.3)
        kind = objective.correction
        if kind != "none" and index == 0:
            # An engine may not know the log-prob of a token; then nothing is corrected.
            rollout[2:3] = math.nan
        bounds = (objective.correction_min, objective.correction_max)
        s = dataclasses.replace(
            s,
            advantage=normal(1.0),
            anchor_advantage=normal(1.0),
            ref_logprob=logprob.detach() + normal(0.5),
            old_logprob=before if old else None,
            rollout_logprob=rollout,
            correction=importance_correction(before, rollout, s.mask, kind, *bounds) if kind != "none" else None,
        )
        made.append(s)
    return made
