"""sentence_scores against what one would write otherwise: padded batches, and a loop over the prompts."""

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from aapa.kernels import SentenceHead, sentence_scores
from benchmarks.harness import Candidate, Case, Options, main

RANK, WIDTH = 128, 64


def padded(u: Tensor, sentences: list[int], e: Tensor, experts: list[int], head: SentenceHead) -> Tensor:
    """(2.1) on [groups, most sentences, most experts], with masked padding."""
    u_GKD = torch.nn.utils.rnn.pad_sequence(list(u.split(sentences)), batch_first=True)
    e_GJD = torch.nn.utils.rnn.pad_sequence(list(e.split(experts)), batch_first=True)
    count = torch.tensor(experts, device=u.device)
    real_GJ = torch.arange(e_GJD.shape[1], device=u.device) < count[:, None]
    real_GK = torch.arange(u_GKD.shape[1], device=u.device) < torch.tensor(sentences, device=u.device)[:, None]
    return dense(u_GKD, e_GJD, real_GJ, head)[real_GK]


def looped(u: Tensor, sentences: list[int], e: Tensor, experts: list[int], head: SentenceHead) -> Tensor:
    """(2.1) prompt by prompt."""
    scores = []
    for u_KD, e_JD in zip(u.split(sentences), e.split(experts), strict=True):
        real_GJ = torch.ones(1, len(e_JD), dtype=torch.bool, device=u.device)
        scores.append(dense(u_KD[None], e_JD[None], real_GJ, head)[0])
    return torch.cat(scores)


def dense(u_GKD: Tensor, e_GJD: Tensor, real_GJ: Tensor, head: SentenceHead) -> Tensor:
    u, e = (linear(x, head.projection_RD, head.offset_R) for x in (u_GKD, e_GJD))
    alpha = (u @ e.mT / head.tau).masked_fill(~real_GJ[:, None], -torch.inf).softmax(-1)
    m = alpha @ e
    hidden = gelu(linear(torch.cat([u, m, u - m, u * m], -1), head.hidden_weight_HF, head.hidden_bias_H))
    return hidden @ head.output_weight_H + head.output_bias


def case(prompts: int, hidden: int, options: Options) -> Case:
    """A step's rollouts: eight of about five sentences per prompt, six expert sentences."""
    generator = torch.Generator().manual_seed(0)
    sentences = torch.randint(24, 56, (prompts,), generator=generator).tolist()
    experts = torch.randint(3, 9, (prompts,), generator=generator).tolist()
    u = torch.randn(sum(sentences), hidden, generator=generator).to(options.device)
    e = torch.randn(sum(experts), hidden, generator=generator).to(options.device)
    shapes = [(RANK, hidden), (RANK,), (WIDTH, 4 * RANK), (WIDTH,), (WIDTH,), ()]
    weights = [torch.randn(shape, generator=generator) / 10 for shape in shapes]
    head = SentenceHead(*weights, tau=RANK**0.5).to(options.device)
    cu_group, cu_expert = (
        torch.tensor([0, *counts], device=options.device).cumsum(0).int() for counts in (sentences, experts)
    )
    total, pairs = len(u), sum(s * n for s, n in zip(sentences, experts, strict=True))
    flops = 2 * (total + len(e)) * hidden * RANK + 4 * pairs * RANK + 2 * total * WIDTH * 4 * RANK
    return Case(
        "sentence_scores",
        {"G": prompts, "S": total, "E": len(e), "D": hidden},
        "float32",
        [
            Candidate("reference", lambda: sentence_scores(u, cu_group, e, cu_expert, head, backend="reference")),
            Candidate("padded", lambda: padded(u, sentences, e, experts, head)),
            Candidate("loop", lambda: looped(u, sentences, e, experts, head)),
        ],
        moved_bytes=4 * hidden * (total + len(e)),
        flops=flops,
    )


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [case(4, 32, options)]
    return [case(16, 160, options), case(64, 1024, options), case(64, 4096, options)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
