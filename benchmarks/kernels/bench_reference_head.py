"""The sentence means of reference_head against index_add_ and a padded mean; with sentence_scores behind it, too.

The linear score behind index_add_ is one number per sentence; ours behind the means is the aligned one of (2.1).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aapa.kernels import SentenceHead, reference_head, sentence_scores
from benchmarks.harness import Candidate, Case, Options, main


def by_index_add(hidden_TD: Tensor, sentence_T: Tensor, length_S: Tensor) -> Tensor:
    sums_SD = hidden_TD.new_zeros(len(length_S), hidden_TD.shape[1], dtype=torch.float32)
    return sums_SD.index_add_(0, sentence_T, hidden_TD.float()) / length_S[:, None]


def by_padding(hidden_TD: Tensor, length_S: Tensor) -> Tensor:
    parts = hidden_TD.float().split(length_S.tolist())
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).sum(1) / length_S[:, None]


def aligned_score(
    sentences: int, width: int, generator: torch.Generator, options: Options
) -> Callable[[Tensor | None], Tensor]:
    """sentence_scores of so many sentences, 40 to a prompt with 6 expert sentences, by a head of rank 32."""
    rank, hidden = 32, 64
    shapes = [(rank, width), (rank,), (hidden, 4 * rank), (hidden,), (hidden,), ()]
    head = SentenceHead(*(torch.randn(shape, generator=generator) / 10 for shape in shapes), tau=rank**0.5)
    head = head.to(options.device)
    groups = -(-sentences // 40)
    cu_group = (torch.arange(groups + 1, device=options.device) * 40).clamp(max=sentences).int()
    cu_expert = torch.arange(groups + 1, device=options.device).int() * 6
    expert_ED = torch.randn(6 * groups, width, generator=generator).to(options.device)

    def score(mean_SD: Tensor | None) -> Tensor:
        assert mean_SD is not None
        return sentence_scores(mean_SD, cu_group, expert_ED, cu_expert, head)

    return score


def case(tokens: int, width: int, options: Options, scored: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    cuts = torch.randperm(tokens - 1, generator=generator)[: tokens // 16] + 1
    cu_sents = torch.cat([torch.zeros(1, dtype=torch.long), cuts.sort().values, torch.tensor([tokens])]).int()
    length_S = cu_sents.diff().to(options.device)
    sentence_T = torch.arange(len(length_S), device=options.device).repeat_interleave(length_S)
    hidden = torch.randn(tokens, width, generator=generator).to(options.device, dtype)
    cu_sents = cu_sents.to(options.device)
    shape = {"T": tokens, "D": width, "S": len(length_S)}
    kind = str(dtype).removeprefix("torch.")
    if scored:
        score = aligned_score(len(length_S), width, generator, options)
        row = torch.nn.Linear(width, 1, device=options.device)
        with_means = [
            Candidate("auto", lambda: score(reference_head(hidden, None, None, cu_sents)[1])),
            Candidate("index_add_ + Linear", lambda: row(by_index_add(hidden, sentence_T, length_S)), peer=True),
        ]
        return Case("reference_head + sentence_scores", shape, kind, with_means, moved_bytes=hidden.nbytes)
    return Case(
        "reference_head",
        shape,
        kind,
        [
            Candidate("auto", lambda: reference_head(hidden, None, None, cu_sents)),
            Candidate("reference", lambda: reference_head(hidden, None, None, cu_sents, backend="reference")),
            Candidate("index_add_", lambda: by_index_add(hidden, sentence_T, length_S), peer=True),
            Candidate("padded", lambda: by_padding(hidden, length_S), peer=True),
        ],
        moved_bytes=hidden.numel() * hidden.element_size(),
    )


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [case(128, 16, options, scored) for scored in (False, True)]
    return [case(16384, width, options, scored) for width in (1024, 4096) for scored in (False, True)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
