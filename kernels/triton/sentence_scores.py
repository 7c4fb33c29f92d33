"""`sentence_scores` without intermediates between projection and score: two products by the library and one kernel.

Shape legend: S sentences, E expert sentences, G groups, D hidden size, R projected size, H width of the hidden layer,
F = 4 R features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from aapa.kernels.sentence_types import SentenceHead
from aapa.kernels.triton.launch import FUSED, LOWEST, accumulator, power_of_two
from aapa.kernels.triton.search import owner_of_piece, pieces, steps

# Sentences of a program, all of one group; experts and hidden units it takes at a time.
SENTENCES = 16
EXPERTS = 16
UNITS = 16
WARPS = 4
# A third stage of weights would take the shared memory of two other programs.
STAGES = 2


@triton.jit
def _product(left, right, ACC: tl.constexpr):
    """left @ right^T in full precision: tf32 would cost more digits than a score has to spare."""
    return tl.dot(left, tl.trans(right), input_precision="ieee", out_dtype=ACC)


@triton.jit
def _aligned(sentence, expert_ER, first, last, rank, tau, R, EXPERTS: tl.constexpr, ACC: tl.constexpr):
    """Soft mean of the experts [first, last) that lie near each sentence: m of (2.1)."""
    maximum = tl.full((sentence.shape[0],), LOWEST, ACC)
    total = tl.zeros((sentence.shape[0],), ACC)
    mean = tl.zeros(sentence.shape, ACC)
    for start in range(first, last, EXPERTS):
        row = start + tl.arange(0, EXPERTS)
        inside = (row < last)[:, None] & (rank < R)[None, :]
        expert = tl.load(expert_ER + row[:, None].to(tl.int64) * R + rank[None, :], mask=inside, other=0.0).to(ACC)
        logit = tl.where((row < last)[None, :], _product(sentence, expert, ACC) / tau, LOWEST)
        highest = tl.maximum(maximum, tl.max(logit, 1))
        factor = tl.exp(maximum - highest)
        alpha = tl.exp(logit - highest[:, None])
        total = factor * total + tl.sum(alpha, 1)
        mean = factor[:, None] * mean + tl.dot(alpha, expert, input_precision="ieee", out_dtype=ACC)
        maximum = highest
    return mean / total[:, None]


@triton.jit
def _sentence_scores(
    sentence_SR, expert_ER, cu_group, cu_expert, hidden_HF, hidden_bias_H, output_H, output_bias, score_S,
    groups, search_steps, tau, R, H,
    RANK: tl.constexpr, SENTENCES: tl.constexpr, EXPERTS: tl.constexpr, UNITS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Scores of up to SENTENCES sentences of one group; features and hidden units stay in registers."""
    group, begin, end = owner_of_piece(cu_group, groups, tl.program_id(0), SENTENCES, search_steps)
    row = begin + tl.arange(0, SENTENCES)
    rank = tl.arange(0, RANK)
    inside = row < end
    first, last = tl.load(cu_expert + group).to(tl.int32), tl.load(cu_expert + group + 1).to(tl.int32)
    score = tl.zeros((SENTENCES,), ACC)
    if (first < last) & (begin < end):
        known = inside[:, None] & (rank < R)[None, :]
        place = sentence_SR + row[:, None].to(tl.int64) * R + rank[None, :]
        sentence = tl.load(place, mask=known, other=0.0).to(ACC)
        mean = _aligned(sentence, expert_ER, first, last, rank, tau, R, EXPERTS, ACC)
        score += tl.load(output_bias).to(ACC)
        for start in range(0, H, UNITS):
            unit = start + tl.arange(0, UNITS)
            there = unit < H
            mask = there[:, None] & (rank < R)[None, :]
            weight = hidden_HF + unit[:, None].to(tl.int64) * (4 * R) + rank[None, :]
            z = _product(sentence, tl.load(weight, mask=mask, other=0.0).to(ACC), ACC)
            z += _product(mean, tl.load(weight + R, mask=mask, other=0.0).to(ACC), ACC)
            z += _product(sentence - mean, tl.load(weight + 2 * R, mask=mask, other=0.0).to(ACC), ACC)
            z += _product(sentence * mean, tl.load(weight + 3 * R, mask=mask, other=0.0).to(ACC), ACC)
            z += tl.load(hidden_bias_H + unit, mask=there, other=0.0).to(ACC)[None, :]
            active = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
            score += tl.sum(active * tl.load(output_H + unit, mask=there, other=0.0).to(ACC)[None, :], 1)
    tl.store(score_S + row, score, mask=inside)


@torch.no_grad()
def sentence_scores(
    sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor, head: SentenceHead
) -> Tensor:
    dtype = torch.promote_types(sentence_SD.dtype, torch.float32)
    device = sentence_SD.device
    head = head.to(device, dtype)
    sentence_SR = linear(sentence_SD.to(dtype), head.projection_RD, head.offset_R)
    expert_ER = linear(expert_ED.to(device, dtype), head.projection_RD, head.offset_R)
    sentences, rank = sentence_SR.shape
    groups = cu_group.shape[0] - 1
    score_S = sentence_SR.new_empty(sentences)
    if sentences:
        _sentence_scores[(pieces(sentences, groups, SENTENCES),)](
            sentence_SR,
            expert_ER,
            cu_group.to(device).contiguous(),
            cu_expert.to(device).contiguous(),
            head.hidden_weight_HF.contiguous(),
            head.hidden_bias_H.contiguous(),
            head.output_weight_H.contiguous(),
            head.output_bias,
            score_S,
            groups,
            steps(groups),
            head.tau,
            rank,
            head.hidden_bias_H.shape[0],
            RANK=power_of_two(rank, 16, 1 << 20),
            SENTENCES=SENTENCES,
            EXPERTS=EXPERTS,
            UNITS=UNITS,
            ACC=accumulator(dtype),
            num_warps=WARPS,
            num_stages=STAGES,
            **FUSED,
        )
    return score_S
