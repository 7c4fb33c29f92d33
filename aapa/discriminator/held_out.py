"""Calibration and examination of a discriminator on held-out prompts, as a run would score them.

Shape legend: B sentences to score, Q contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aapa.discriminator.base import Discriminator
from aapa.discriminator.corruptions import CORRUPTIONS
from aapa.discriminator.pairs import SentencePool, draw_sets
from aapa.discriminator.quality import QualityCard, auc, auc_length_matched, score_histogram

ROWS_PER_CALL = 4096
SATURATION = 3.0


def score_rows(
    discriminator: Discriminator,
    pool: SentencePool,
    nearness: SentencePool,
    row_B: Tensor,
    set_B: Tensor,
    leave_out_B: Tensor,
) -> Tensor:
    """Raw scores of sentences of a pool against whole sets, float [B].

    Args:
        nearness: the pool with the features by which the nearest sentence is found, where it is left out.
        row_B, set_B, leave_out_B: as in `draw_sets`.
    """
    scores = [torch.zeros(0, device=row_B.device)]
    for row, chosen, leave_out in zip(
        row_B.split(ROWS_PER_CALL), set_B.split(ROWS_PER_CALL), leave_out_B.split(ROWS_PER_CALL), strict=True
    ):
        if not len(row):
            continue
        expert_E, cu_expert = draw_sets(nearness, row, chosen, leave_out, None, None)
        cu_group = torch.arange(len(row) + 1, device=row.device)
        scores.append(discriminator.score(pool.state_SD[row], cu_group, pool.state_SD[expert_E], cu_expert))
    return torch.cat(scores)


def reference_scores(discriminator: Discriminator, pool: SentencePool) -> Tensor:
    """Raw scores of all rollout sentences against their prompt's reference response."""
    row_B = torch.cat([pool.rollouts.rows(p) for p in range(len(pool.rollouts.count_G))])
    set_B = pool.responses.start_G.repeat_interleave(pool.rollouts.count_G)
    return score_rows(discriminator, pool, pool, row_B, set_B, torch.zeros_like(row_B, dtype=torch.bool))


def calibrate(discriminator: Discriminator, pool: SentencePool) -> tuple[float, float]:
    """mu_off and sigma_off of (3.1): mean and standard deviation of the held-out rollouts' scores."""
    sentences = int(pool.rollouts.count_G.sum())
    if sentences < 2:
        raise ValueError(f"material: expected 2 sentences or more of held-out rollouts, got {sentences}")
    score_B = reference_scores(discriminator, pool).double()
    mean, std = float(score_B.mean()), float(score_B.std())
    if not 0 < std < float("inf"):
        raise ValueError(f"material: expected held-out rollouts whose scores vary, got a standard deviation of {std}")
    return mean, std


@dataclass(frozen=True)
class Examined:
    """Scores of the held-out sentences of one role, with what they are compared by."""

    score_B: Tensor
    length_B: Tensor
    kind_B: Tensor
    leave_out_B: Tensor

    @classmethod
    def of(cls, discriminator: Discriminator, pool: SentencePool, nearness: SentencePool, role: str) -> Examined:
        row_B, source_B, set_B = _items(pool, role)
        leave_out_B = source_B == set_B
        score_B = score_rows(discriminator, pool, nearness, row_B, set_B, leave_out_B)
        return cls(score_B, pool.length_S[row_B], pool.kind_S[row_B], leave_out_B)


def quality_card(
    discriminator: Discriminator, pool: SentencePool, nearness: SentencePool, train_prompts: int
) -> QualityCard:
    """Figures of a calibrated discriminator on a held-out pool; see `QualityCard`."""
    roles = ("positives", "rollouts", "other_prompts", "damaged")
    examined = {role: Examined.of(discriminator, pool, nearness, role) for role in roles}
    positive = examined["positives"]
    score_B = {role: examined[role].score_B for role in roles[1:]}
    length_B = {role: examined[role].length_B for role in roles[1:]}
    for k, kind in enumerate(CORRUPTIONS):
        chosen_B = examined["damaged"].kind_B == k
        score_B[kind], length_B[kind] = score_B["damaged"][chosen_B], length_B["damaged"][chosen_B]
    score_B["all"] = torch.cat([score_B[role] for role in roles[1:]])
    length_B["all"] = torch.cat([length_B[role] for role in roles[1:]])
    plain = {name: auc(positive.score_B, score) for name, score in score_B.items()}
    matched = {
        name: auc_length_matched(positive.score_B, positive.length_B, score, length_B[name])
        for name, score in score_B.items()
    }
    reference_B = reference_scores(discriminator, pool)
    second_R, second_length_R = _second_experts(positive, pool)
    rollout_N, rollout_length_N = response_means(reference_B, pool.rollout_length_N)
    a_B = (reference_B - discriminator.mean) / discriminator.std
    return QualityCard(
        auc=plain["all"],
        rollouts=plain["rollouts"],
        other_prompts=plain["other_prompts"],
        corruptions={kind: plain[kind] for kind in CORRUPTIONS},
        auc_length_matched=matched["all"],
        rollouts_length_matched=matched["rollouts"],
        other_prompts_length_matched=matched["other_prompts"],
        corruptions_length_matched={kind: matched[kind] for kind in CORRUPTIONS},
        rollouts_by_response=auc(second_R, rollout_N),
        rollouts_by_response_length_matched=auc_length_matched(second_R, second_length_R, rollout_N, rollout_length_N),
        saturation=float((a_B.abs() > SATURATION).float().mean()),
        counts={
            "train_prompts": train_prompts,
            "held_out_prompts": len(pool.responses.count_G),
            "leave_one_out": int(positive.leave_out_B.sum()),
            **{role: len(examined[role].score_B) for role in roles},
        },
        histograms={
            role: score_histogram((examined[role].score_B - discriminator.mean) / discriminator.std) for role in roles
        },
    )


def response_means(score_B: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score of each response that has a sentence, and how many it has.

    Args:
        score_B: of consecutive responses' sentences.
        length_N: int64, sentences of each response.
    """
    sum_N = torch.zeros(len(length_N), dtype=torch.float64, device=score_B.device)
    owner_B = torch.arange(len(length_N), device=score_B.device).repeat_interleave(length_N)
    sum_N.index_add_(0, owner_B, score_B.double())
    kept_N = length_N > 0
    return (sum_N / length_N.clamp(min=1))[kept_N], length_N[kept_N]


def _second_experts(positives: Examined, pool: SentencePool) -> tuple[Tensor, Tensor]:
    """`response_means` of the second experts against the first, whole, as a run scores a rollout."""
    source_Q, set_Q = pool.contrasts(reference_only=True).unbind(1)
    return response_means(positives.score_B[~positives.leave_out_B], pool.experts.count_G[source_Q[source_Q != set_Q]])


def _items(pool: SentencePool, role: str) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences of a role with the contrast that each is scored in: (row, source, set), int64 [B] each.

    Negatives that do not come from a source count once, however many second experts a prompt has.
    """
    prompts = len(pool.responses.count_G)
    rows, owners, seen = [torch.zeros(0, dtype=torch.int64, device=pool.state_SD.device)], [], set()
    contrast_Q2 = pool.contrasts(reference_only=True)
    for q, (source, _) in enumerate(contrast_Q2.tolist()):
        prompt = int(pool.prompt_R[source])
        if role == "positives":
            found = pool.experts.rows(source)
        elif role == "damaged":
            found = pool.damaged.rows(source)
        elif prompt in seen:
            continue
        elif role == "rollouts":
            found = pool.rollouts.rows(prompt)
        else:
            found = pool.experts.rows(int(pool.responses.start_G[(prompt + 1) % prompts]))
        seen.add(prompt)
        rows.append(found)
        owners += [q] * len(found)
    row_B = torch.cat(rows)
    source_B, set_B = contrast_Q2[torch.tensor(owners, dtype=torch.int64, device=row_B.device)].unbind(1)
    return row_B, source_B, set_B
