"""linear_policy_loss (three GEMMs, gradients in the forward pass) against autograd through log-probs."""

import torch

from aapa.kernels import TokenLossSpec, linear_logprob, linear_policy_loss, policy_loss
from benchmarks.harness import Candidate, Case, Options, main
from benchmarks.kernels.head_problem import HeadProblem, head_problems

SPEC = TokenLossSpec()


def case(problem: HeadProblem) -> Case:
    hidden, weight = (t.clone().requires_grad_() for t in (problem.hidden_TD, problem.weight_VD))
    main_grad = torch.zeros_like(weight, dtype=torch.float32)

    def ours() -> None:
        loss, _ = linear_policy_loss(hidden, weight, problem.fields, SPEC, main_grad=main_grad, backend="reference")
        torch.autograd.grad(loss, hidden)

    def recomputed() -> None:
        logprob_T, _ = linear_logprob(hidden, weight, problem.fields.target_T, backend="reference")
        loss, _ = policy_loss(logprob_T, None, problem.fields, SPEC)
        torch.autograd.grad(loss, (hidden, weight))

    def whole_logits() -> None:
        logits_TV = (hidden @ weight.t()).float()
        logprob_T = logits_TV.log_softmax(-1).gather(1, problem.fields.target_T[:, None])[:, 0]
        loss, _ = policy_loss(logprob_T, None, problem.fields, SPEC)
        torch.autograd.grad(loss, (hidden, weight))

    def bare_gemms() -> None:
        with torch.no_grad():
            logits_TV = hidden @ weight.t()
            _ = logits_TV @ weight, logits_TV.t() @ hidden

    mode = "forward+backward"
    return Case(
        "linear_policy_loss",
        problem.shape,
        problem.dtype,
        [
            Candidate("reference", ours, mode),
            Candidate("log-probs recomputed in backward", recomputed, mode),
            Candidate("whole logits", whole_logits, mode),
            Candidate("three bare GEMMs", bare_gemms, mode),
        ],
        flops=3 * problem.flops_per_gemm,
    )


def cases(options: Options) -> list[Case]:
    return [case(problem) for problem in head_problems(options)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
