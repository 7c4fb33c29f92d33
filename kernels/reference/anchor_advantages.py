"""Reference of `anchor_advantages`: sums over sentences, responses and groups in float64.

Shape legend: T response tokens, S sentences, N responses, G groups, K sentences of the longest response.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(reward_N: Tensor, group_N: Tensor, groups: int, scale: str, eps: float) -> Tensor:
    """(r - mean_g) / (std + eps) over the rewards that are not NaN, float64 [N]; 0 where masked or alone."""
    valid_N = ~reward_N.isnan()
    # Rewards are taken relative to the group's least one, so that equal rewards give exactly 0.
    least_G = reward_N.new_full((groups,), torch.inf).scatter_reduce(
        0, group_N, torch.where(valid_N, reward_N, torch.inf), "amin"
    )
    absolute_N = torch.where(valid_N, reward_N, 0.0)
    reward_N = torch.where(valid_N, reward_N - least_G[group_N], 0.0)
    count_G = _sum(valid_N.double(), group_N, groups)
    mean_G = _sum(reward_N, group_N, groups) / count_G.clamp(min=1)
    centred_N = torch.where(valid_N, reward_N - mean_G[group_N], 0.0)
    if scale == "none":
        return centred_N
    if scale == "batch":
        total = valid_N.sum()
        batch_mean = absolute_N.sum() / total.clamp(min=1)
        variance = torch.where(valid_N, (absolute_N - batch_mean) ** 2, 0.0).sum() / (total - 1).clamp(min=1)
        return centred_N / (variance.sqrt() + eps)
    variance_G = _sum(centred_N**2, group_N, groups) / (count_G - 1).clamp(min=1)
    return centred_N / (variance_G.sqrt()[group_N] + eps)


def leave_one_out(total_N: Tensor, weight_N: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """b_i of (3.2): weighted mean of a over the other responses of the group, float64 [N]; 0 where there are none.

    Args:
        total_N: [N] float64, sum of a times weight over the response's anchored tokens; weight_N: [N] float64, sum of
            the weights, 0 for a response without an anchor.
    """
    others_N = _sum(total_N, group_N, groups)[group_N] - total_N
    weight_others_N = _sum(weight_N, group_N, groups)[group_N] - weight_N
    # The rest of a difference that should be 0 is far below any response's own weight.
    alone_N = weight_others_N <= 1e-9 * weight_N.amax() if len(weight_N) else weight_N.bool()
    return torch.where(alone_N, 0.0, others_N / torch.where(alone_N, 1.0, weight_others_N))


def discounted_returns(value_S: Tensor, response_S: Tensor, responses: int, discount: float) -> Tensor:
    """Sum over this and the following sentences of the same response, discounted by sentences; [S]."""
    count_N = torch.bincount(response_S, minlength=responses)
    rank_S = torch.arange(value_S.shape[0], device=value_S.device) - (count_N.cumsum(0) - count_N)[response_S]
    value_KN = value_S.new_zeros(int(count_N.max()) if responses else 0, responses)
    value_KN[rank_S, response_S] = value_S
    for k in range(value_KN.shape[0] - 2, -1, -1):
        value_KN[k] += discount * value_KN[k + 1]
    return value_KN[rank_S, response_S]


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
    dtype = torch.promote_types(score_S.dtype, torch.float32)
    length_S, length_N = cu_sents.diff().long(), cu_seqlens.diff().long()
    responses = length_N.shape[0]
    # A boundary of a response is one of a sentence, so a sentence's response is the one its first token lies
    # in.
    response_S = torch.bucketize(cu_sents[:-1].long(), cu_seqlens[1:].long(), right=True)
    if not torch.equal(torch.zeros_like(length_N).index_add(0, response_S, length_S), length_N):
        raise ValueError(f"cu_sents: expected offsets that refine {cu_seqlens.tolist()[:8]} …")
    distinct, group_N = torch.unique(group_N, return_inverse=True)
    groups = distinct.shape[0]

    advantage_N = group_advantages(reward_N.detach().double(), group_N, groups, scale, eps)

    has_anchor_S = length_S > 0
    if anchored_N is not None:
        has_anchor_S = has_anchor_S & anchored_N[response_S]
    if anchored_S is not None:
        has_anchor_S = has_anchor_S & anchored_S
    a_S = ((score_S.detach().double() - mean) / std).clamp(-clip, clip)
    # A sentence without an anchor may hold any score, NaN too, so it is replaced rather than multiplied by 0.
    a_S = torch.where(has_anchor_S, a_S, 0.0)
    # Weights of tokens in the loss, up to a factor that the whole group shares.
    weight_S = torch.where(has_anchor_S, length_S.double(), 0.0)
    if aggregation == "grpo":
        weight_S = weight_S / length_N.clamp(min=1)[response_S]
    b_N = leave_one_out(
        _sum(a_S * weight_S, response_S, responses), _sum(weight_S, response_S, responses), group_N, groups
    )
    anchor_S = torch.where(has_anchor_S, a_S - b_N[response_S], 0.0)
    if credit == "return":
        returns_S = discounted_returns(anchor_S, response_S, responses, discount)
        anchor_S = torch.where(has_anchor_S, returns_S, 0.0)
    return advantage_N.to(dtype).repeat_interleave(length_N), anchor_S.to(dtype).repeat_interleave(length_S)


def _sum(value: Tensor, index: Tensor, size: int) -> Tensor:
    return value.new_zeros(size).index_add(0, index, value)
