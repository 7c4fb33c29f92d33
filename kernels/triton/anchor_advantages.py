"""`anchor_advantages` in two launches, a program a response: sums of its sentences, then its group and its tokens.

Sums run in float64, as in the reference. Groups are found by comparing ids, so they may come in any order.

Shape legend: T response tokens, S sentences, N responses.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aapa.kernels.triton.launch import FUSED
from aapa.kernels.triton.search import first_not_below, steps

# Sizes of blocks, at which no target spills under Triton 3.6 and 3.9 (benchmarks/kernels/aot_report.py).
SENTENCES = 64
RESPONSES = 256
TOKENS = 128
WARPS = 4


@triton.jit
def _centred(score_S, cu_sents, anchored_S, anchored, k, wanted, mean, std, clip):
    """(a_k of (3.1), or 0; length of the sentence, or 0 where it has no anchor), float64."""
    begin = tl.load(cu_sents + k, mask=wanted, other=0)
    length = tl.load(cu_sents + k + 1, mask=wanted, other=0) - begin
    there = wanted & (length > 0) & anchored
    if anchored_S is not None:
        there = there & (tl.load(anchored_S + k, mask=wanted, other=0) != 0)
    # A sentence without an anchor may hold any score, NaN too: it is not loaded. Comparisons keep the NaN of others.
    a = (tl.load(score_S + k, mask=there, other=0.0).to(tl.float64) - mean) / std
    a = tl.where(a > clip, clip, tl.where(a < -clip, -clip, a))
    return tl.where(there, a, 0.0), tl.where(there, length, 0).to(tl.float64)


@triton.jit
def _anchor_sums(
    score_S, cu_sents, cu_seqlens, anchored_N, anchored_S, first_N, total_N, weight_N, fault_N,
    sentences, search_steps, mean, std, clip, BY_SEQUENCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First sentence of a response, sums of a times weight and of weights over its anchored tokens."""
    response = tl.program_id(0)
    begin, end = tl.load(cu_seqlens + response), tl.load(cu_seqlens + response + 1)
    low = response * 0
    first = first_not_below(cu_sents, low, low + sentences, begin, search_steps)
    last = first_not_below(cu_sents, low, low + sentences, end, search_steps)
    anchored = first <= last
    if anchored_N is not None:
        anchored = tl.load(anchored_N + response) != 0
    total = tl.zeros((BLOCK,), tl.float64)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(first, last, BLOCK):
        k = start + tl.arange(0, BLOCK)
        a, length = _centred(score_S, cu_sents, anchored_S, anchored, k, k < last, mean, std, clip)
        total += a * length
        weight += length
    share = 1.0
    if BY_SEQUENCE:
        share = 1.0 / tl.maximum(end - begin, 1).to(tl.float64)
    tl.store(first_N + response, first)
    tl.store(total_N + response, tl.sum(total, 0) * share)
    tl.store(weight_N + response, tl.sum(weight, 0) * share)
    covered = tl.load(cu_sents + last) - tl.load(cu_sents + first)
    tl.store(fault_N + response, (covered != end - begin).to(tl.int32))


@triton.jit
def _members(reward_N, group_N, own_group, start, responses, BLOCK: tl.constexpr):
    """(rewards, which of them are there at all, which belong to the group) of some responses; NaN is not there."""
    place = start + tl.arange(0, BLOCK)
    reward = tl.load(reward_N + place, mask=place < responses, other=float("nan")).to(tl.float64)
    there = reward == reward
    return reward, there, there & (tl.load(group_N + place, mask=place < responses, other=0) == own_group)


@triton.jit
def _group_advantage(reward_N, group_N, own_group, own, responses, eps, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """(r - mean of the group) / (std + eps) over the rewards that are there; 0 for one that is not.

    Rewards are taken relative to the group's least one, so that equal rewards give exactly 0.
    """
    least = tl.full((BLOCK,), float("inf"), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    every = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, responses, BLOCK):
        reward, there, mine = _members(reward_N, group_N, own_group, start, responses, BLOCK)
        least = tl.minimum(least, tl.where(mine, reward, float("inf")))
        count += tl.where(mine, 1.0, 0.0)
        every += tl.where(there, 1.0, 0.0)
        total += tl.where(there, reward, 0.0)
    members, rewards = tl.sum(count, 0), tl.sum(every, 0)
    low = tl.where(members > 0, tl.min(least, 0), 0.0)
    middle = tl.sum(total, 0) / tl.maximum(rewards, 1.0)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, responses, BLOCK):
        reward, there, mine = _members(reward_N, group_N, own_group, start, responses, BLOCK)
        total += tl.where(mine, reward - low, 0.0)
    mean = tl.sum(total, 0) / tl.maximum(members, 1.0)
    centred = tl.where(own == own, own - low - mean, 0.0)
    if SCALE != "none":
        square = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, responses, BLOCK):
            reward, there, mine = _members(reward_N, group_N, own_group, start, responses, BLOCK)
            if SCALE == "group":
                away = tl.where(mine, reward - low - mean, 0.0)
            else:
                away = tl.where(there, reward - middle, 0.0)
            square += away * away
        degrees = rewards - 1.0
        if SCALE == "group":
            degrees = members - 1.0
        centred = centred / (tl.sqrt(tl.sum(square, 0) / tl.maximum(degrees, 1.0)) + eps)
    return centred


@triton.jit
def _baseline(total_N, weight_N, group_N, own_group, response, responses, BLOCK: tl.constexpr):
    """b_i of (3.2): weighted mean of a over the other responses of the group, 0 where there are none."""
    total = tl.zeros((BLOCK,), tl.float64)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, responses, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < responses
        other = inside & (place != response)
        other = other & (tl.load(group_N + place, mask=inside, other=0) == own_group)
        total += tl.load(total_N + place, mask=other, other=0.0)
        weight += tl.load(weight_N + place, mask=other, other=0.0)
    weighed = tl.sum(weight, 0)
    return tl.where(weighed > 0, tl.sum(total, 0) / tl.where(weighed > 0, weighed, 1.0), 0.0)


@triton.jit
def _anchor_tokens(
    score_S, cu_sents, cu_seqlens, anchored_N, anchored_S, reward_N, group_N, first_N, total_N, weight_N, return_S,
    advantage_T, anchor_T, responses, sentences, search_steps, mean, std, clip, discount, eps,
    SCALE: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Both advantages of one response's tokens. `return_S` is scratch for credit "return", None for "sentence"."""
    response = tl.program_id(0)
    group = tl.load(group_N + response)
    reward = tl.load(reward_N + response).to(tl.float64)
    advantage = _group_advantage(reward_N, group_N, group, reward, responses, eps, SCALE, BLOCK)
    b = _baseline(total_N, weight_N, group_N, group, response, responses, BLOCK)
    first = tl.load(first_N + response)
    last = tl.load(first_N + response + 1, mask=response + 1 < responses, other=sentences)
    anchored = first <= last
    if anchored_N is not None:
        anchored = tl.load(anchored_N + response) != 0
    if return_S is not None:
        later = tl.full((), 0.0, tl.float64)
        for back in range(last - first):
            k = last - 1 - back
            a, length = _centred(score_S, cu_sents, anchored_S, anchored, k, k >= first, mean, std, clip)
            later = tl.where(length > 0, a - b, 0.0) + discount * later
            tl.store(return_S + k, tl.where(length > 0, later, 0.0))
        # One thread has written what all will read.
        tl.debug_barrier()
    begin, end = tl.load(cu_seqlens + response), tl.load(cu_seqlens + response + 1)
    for start in range(begin, end, TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = token < end
        low = tl.zeros((TOKENS,), tl.int32)
        k = first_not_below(cu_sents, low + first, low + last, token + 1, search_steps) - 1
        if return_S is not None:
            value = tl.load(return_S + k, mask=inside, other=0.0)
        else:
            a, length = _centred(score_S, cu_sents, anchored_S, anchored, k, inside, mean, std, clip)
            value = tl.where(length > 0, a - b, 0.0)
        tl.store(anchor_T + token, value.to(anchor_T.dtype.element_ty), mask=inside)
        value = tl.zeros((TOKENS,), tl.float64) + advantage
        tl.store(advantage_T + token, value.to(advantage_T.dtype.element_ty), mask=inside)


@torch.no_grad()
def anchor_advantages(
    score_S: Tensor,
    reward_N: Tensor,
    cu_sents: Tensor,
    cu_seqlens: Tensor,
    group_N: Tensor,
    *,
    mean: float,
    std: float,
    clip: float,
    aggregation: str,
    scale: str,
    credit: str,
    discount: float,
    anchored_N: Tensor | None,
    anchored_S: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    responses, sentences = cu_seqlens.shape[0] - 1, cu_sents.shape[0] - 1
    tokens = int(cu_seqlens[-1])
    dtype = torch.promote_types(score_S.dtype, torch.float32)
    advantage_T, anchor_T = score_S.new_empty(2, tokens, dtype=dtype)
    if not responses:
        return advantage_T, anchor_T
    score_S, cu_sents, cu_seqlens, reward_N, group_N = (
        x.to(score_S.device).contiguous() for x in (score_S, cu_sents, cu_seqlens, reward_N, group_N)
    )
    # Triton has no pointers to bool.
    anchored = [None if x is None else x.to(score_S.device, torch.int8).contiguous() for x in (anchored_N, anchored_S)]
    sentence_data = (score_S, cu_sents, cu_seqlens, *anchored)
    first_N, fault_N = score_S.new_zeros(2, responses, dtype=torch.int32)
    total_N, weight_N = score_S.new_empty(2, responses, dtype=torch.float64)
    calibration = (steps(sentences), float(mean), float(std), float(clip))
    options = {"num_warps": WARPS, **FUSED}
    sums = (first_N, total_N, weight_N, fault_N, sentences, *calibration)
    by_sequence = aggregation == "grpo"
    _anchor_sums[(responses,)](*sentence_data, *sums, BY_SEQUENCE=by_sequence, BLOCK=SENTENCES, **options)
    return_S = score_S.new_empty(sentences, dtype=torch.float64) if credit == "return" else None
    group_data = (reward_N, group_N, first_N, total_N, weight_N, return_S, advantage_T, anchor_T)
    numbers = (responses, sentences, *calibration, float(discount), float(eps))
    _anchor_tokens[(responses,)](
        *sentence_data, *group_data, *numbers, SCALE=scale, BLOCK=RESPONSES, TOKENS=TOKENS, **options
    )
    # Read last, so that nothing above waits for it.
    if bool(fault_N.any()):
        raise ValueError(f"cu_sents: expected offsets that refine {cu_seqlens.tolist()[:8]} …")
    return advantage_T, anchor_T
