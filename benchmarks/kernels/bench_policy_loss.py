"""policy_loss against the two-line surrogate of one component, forward and backward."""

import torch

from aapa.kernels import TokenFields, TokenLossSpec, policy_loss
from benchmarks.harness import Candidate, Case, Options, main


def case(tokens: int, options: Options) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(tokens, generator=generator).to(options.device)

    logprob = normal().requires_grad_()
    weight = torch.full((tokens,), 1.0 / tokens, device=options.device)
    fields = TokenFields(
        target_T=torch.zeros(tokens, dtype=torch.long, device=options.device),
        rl_weight_T=weight,
        adv_weight_T=weight,
        advantage_T=normal(),
        anchor_advantage_T=normal(),
        old_logprob_T=logprob.detach() + 0.1 * normal(),
    )

    def ours() -> None:
        loss, _ = policy_loss(logprob, None, fields, TokenLossSpec(), backend="reference")
        torch.autograd.grad(loss, logprob)

    def one_component() -> None:
        ratio = (logprob - fields.old_logprob_T).exp()
        surrogate = torch.minimum(ratio * fields.advantage_T, ratio.clamp(0.8, 1.2) * fields.advantage_T)
        torch.autograd.grad(-(weight * surrogate).sum(), logprob)

    mode = "forward+backward"
    return Case(
        "policy_loss",
        {"T": tokens},
        "float32",
        [Candidate("reference", ours, mode), Candidate("one component, no metrics", one_component, mode)],
        moved_bytes=4 * tokens * 7,
    )


def cases(options: Options) -> list[Case]:
    return [case(tokens, options) for tokens in ([256] if options.smoke else [16384, 262144])]


if __name__ == "__main__":
    raise SystemExit(main(cases))
