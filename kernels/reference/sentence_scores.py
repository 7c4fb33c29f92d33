"""Reference of `sentence_scores`: every sentence-expert pair of a group in one list, so nothing is padded.

Shape legend: S sentences, E expert sentences, G groups, N pairs, D hidden size, R projected size, F = 4 R
    features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from aapa.kernels.sentence_types import SentenceHead


def pair_indices(cu_group: Tensor, cu_expert: Tensor) -> tuple[Tensor, Tensor]:
    """Sentence and expert index of every pair within a group, sorted by sentence; int64 [N] each."""
    sentences_G, experts_G = cu_group.diff().long(), cu_expert.diff().long()
    partners_S = experts_G.repeat_interleave(sentences_G)
    device = partners_S.device
    sentence_N = torch.arange(partners_S.shape[0], device=device).repeat_interleave(partners_S)
    first_pair_S = partners_S.cumsum(0) - partners_S
    first_expert_S = cu_expert[:-1].long().repeat_interleave(sentences_G)
    within_N = torch.arange(sentence_N.shape[0], device=device) - first_pair_S[sentence_N]
    return sentence_N, first_expert_S[sentence_N] + within_N


def aligned_features(
    projected_SR: Tensor, cu_group: Tensor, projected_ER: Tensor, cu_expert: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """The MLP's input of (2.1), [S, 4 R], and whether a sentence has any expert, bool [S]; differentiable."""
    sentence_N, expert_N = pair_indices(cu_group, cu_expert)
    sentences = projected_SR.shape[0]
    partner_NR = projected_ER[expert_N]
    logit_N = (projected_SR[sentence_N] * partner_NR).sum(1) / tau
    peak_S = logit_N.new_zeros(sentences).scatter_reduce(0, sentence_N, logit_N.detach(), "amax", include_self=False)
    exp_N = (logit_N - peak_S[sentence_N]).exp()
    total_S = exp_N.new_zeros(sentences).index_add(0, sentence_N, exp_N)
    alpha_N = exp_N / total_S[sentence_N]
    aligned_SR = torch.zeros_like(projected_SR).index_add(0, sentence_N, alpha_N[:, None] * partner_NR)
    feature_SF = torch.cat([projected_SR, aligned_SR, projected_SR - aligned_SR, projected_SR * aligned_SR], dim=1)
    # Not from the sums: a NaN among them would read as no expert.
    has_expert_S = (cu_expert.diff() > 0).repeat_interleave(cu_group.diff().long())
    return feature_SF, has_expert_S.to(feature_SF.device)


def sentence_scores(
    sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor, head: SentenceHead
) -> Tensor:
    dtype = torch.promote_types(sentence_SD.dtype, torch.float32)
    head = head.to(sentence_SD.device, dtype)
    projected_SR = linear(sentence_SD.to(dtype), head.projection_RD, head.offset_R)
    projected_ER = linear(expert_ED.to(dtype), head.projection_RD, head.offset_R)
    feature_SF, has_expert_S = aligned_features(projected_SR, cu_group, projected_ER, cu_expert, head.tau)
    hidden_SH = gelu(linear(feature_SF, head.hidden_weight_HF, head.hidden_bias_H))
    score_S = hidden_SH @ head.output_weight_H + head.output_bias
    return torch.where(has_expert_S, score_S, torch.zeros_like(score_S))
