"""anchor_advantages against a loop over groups and against sums over tokens with index_add_."""

import torch
from torch import Tensor

from aapa.kernels import anchor_advantages
from benchmarks.harness import Candidate, Case, Options, main

GROUP = 8


def by_group(score_S: Tensor, reward_N: Tensor, counts: list[int], length_S: Tensor) -> tuple[Tensor, Tensor]:
    """Group by group and response by response, as one would write it from the formulas."""
    advantages, anchors = [], []
    parts = list(zip(score_S.clamp(-3, 3).split(counts), length_S.split(counts), strict=True))
    for first in range(0, len(parts), GROUP):
        members = parts[first : first + GROUP]
        reward = reward_N[first : first + GROUP]
        centred = (reward - reward.mean()) / (reward.std() + 1e-4)
        totals = torch.stack([(a * n).sum() for a, n in members])
        tokens = torch.stack([n.sum() for _, n in members])
        baseline = (totals.sum() - totals) / (tokens.sum() - tokens)
        for i, (a, n) in enumerate(members):
            anchors.append((a - baseline[i]).repeat_interleave(n))
            advantages.append(centred[i].expand(int(tokens[i])))
    return torch.cat(advantages), torch.cat(anchors)


def by_token(score_S: Tensor, reward_N: Tensor, length_S: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
    """Every score spread over its tokens first, then summed with index_add_."""
    responses = len(reward_N)
    a_T = score_S.clamp(-3, 3).repeat_interleave(length_S)
    response_T = torch.arange(responses, device=a_T.device).repeat_interleave(length_N)
    group_T = response_T // GROUP
    zeros = a_T.new_zeros(responses)
    total_N = zeros.index_add(0, response_T, a_T)
    group_sum = a_T.new_zeros(responses // GROUP).index_add_(0, group_T, a_T)
    tokens = a_T.new_zeros(responses // GROUP).index_add_(0, group_T, torch.ones_like(a_T))
    baseline_N = (group_sum.repeat_interleave(GROUP) - total_N) / (tokens.repeat_interleave(GROUP) - length_N)
    reward = reward_N.view(-1, GROUP)
    centred = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).view(-1)
    return centred[response_T], a_T - baseline_N[response_T]


def case(responses: int, tokens: int, options: Options) -> Case:
    """Responses of about `tokens` tokens in sentences of about twelve."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 2 * tokens // 12, (responses,), generator=generator)
    length_S = torch.randint(4, 21, (int(counts.sum()),), generator=generator)
    response_S = torch.arange(responses).repeat_interleave(counts)
    length_N = torch.zeros(responses, dtype=torch.int64).index_add(0, response_S, length_S)
    zero = torch.zeros(1, dtype=torch.int64)
    cu_sents, cu_seqlens = (torch.cat([zero, length.cumsum(0)]).int() for length in (length_S, length_N))
    group_N = torch.arange(responses) // GROUP
    score_S = torch.randn(len(length_S), generator=generator)
    reward_N = torch.randint(2, (responses,), generator=generator).float()
    on_device = [t.to(options.device) for t in (score_S, reward_N, cu_sents, cu_seqlens, group_N)]
    score_S, reward_N, cu_sents, cu_seqlens, group_N = on_device
    length_S, length_N, count_list = length_S.to(options.device), length_N.to(options.device), counts.tolist()
    return Case(
        "anchor_advantages",
        {"N": responses, "S": len(length_S), "T": int(cu_seqlens[-1])},
        "float32",
        [
            Candidate(
                "reference",
                lambda: anchor_advantages(
                    score_S, reward_N, cu_sents, cu_seqlens, group_N, mean=0.0, std=1.0, backend="reference"
                ),
            ),
            Candidate("index_add_ over tokens", lambda: by_token(score_S, reward_N, length_S, length_N)),
            Candidate("loop over groups", lambda: by_group(score_S, reward_N, count_list, length_S)),
        ],
        moved_bytes=2 * 4 * int(cu_seqlens[-1]),
    )


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [case(2 * GROUP, 40, options)]
    return [case(128, 48, options), case(512, 1024, options), case(1024, 8192, options)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
