"""linear_logprob against whole logits, forward and backward."""

import torch
from torch import Tensor

from aapa.kernels import linear_logprob
from benchmarks.harness import Candidate, Case, Options, main
from benchmarks.kernels.head_problem import HeadProblem, head_problems


def whole_logits(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    """What one writes first: every logit at once, in float32."""
    return -torch.nn.functional.cross_entropy((hidden_TD @ weight_VD.t()).float(), target_T, reduction="none")


def case(problem: HeadProblem, backward: bool) -> Case:
    hidden, weight = (t.clone().requires_grad_(backward) for t in (problem.hidden_TD, problem.weight_VD))
    target = problem.fields.target_T

    def finish(logprob_T: Tensor) -> None:
        if backward:
            torch.autograd.grad(logprob_T.sum(), (hidden, weight))

    mode = "forward+backward" if backward else "forward"
    return Case(
        "linear_logprob",
        problem.shape,
        problem.dtype,
        [
            Candidate("auto", lambda: finish(linear_logprob(hidden, weight, target)[0]), mode),
            Candidate(
                "reference",
                lambda: finish(linear_logprob(hidden, weight, target, backend="reference")[0]),
                mode,
            ),
            Candidate("whole logits", lambda: finish(whole_logits(hidden, weight, target)), mode, peer=True),
        ],
        flops=problem.flops_per_gemm * (4 if backward else 1),
    )


def cases(options: Options) -> list[Case]:
    return [case(problem, backward) for problem in head_problems(options) for backward in (False, True)]


if __name__ == "__main__":
    raise SystemExit(main(cases))
