"""linear_policy_loss (three products, gradients in the forward pass) against its bare products, autograd through
log-probs, and torch's own chunked head on the loss that both have; and with a fifth of the rows active."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aapa.kernels import TokenFields, TokenLossSpec, linear_logprob, linear_policy_loss, policy_loss
from aapa.kernels.chunked.plan import Plan
from benchmarks.harness import Candidate, Case, Options, main
from benchmarks.kernels.head_problem import HeadProblem, head_problems

SPEC = TokenLossSpec()
MODE = "forward+backward"
ACTIVE = 0.2


def fused(problem: HeadProblem, fields: TokenFields, **options: Any) -> Callable[[], None]:
    """Ours with a float32 accumulator of dWeight, as a training step has it."""
    hidden, weight = (t.clone().requires_grad_() for t in (problem.hidden_TD, problem.weight_VD))
    main_grad = torch.zeros_like(weight, dtype=torch.float32)

    def run() -> None:
        loss, _ = linear_policy_loss(hidden, weight, fields, SPEC, main_grad=main_grad, **options)
        torch.autograd.grad(loss, hidden)

    return run


def by_autograd(problem: HeadProblem, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
    hidden, weight = (t.clone().requires_grad_() for t in (problem.hidden_TD, problem.weight_VD))

    def run() -> None:
        torch.autograd.grad(loss(hidden, weight), (hidden, weight))

    return run


def bare_products(problem: HeadProblem) -> Callable[[], None]:
    """Logits, dHidden and dWeight of the same chunks of rows, each chunk in memory that is there already."""
    hidden, weight = problem.hidden_TD, problem.weight_VD
    tokens, vocab = len(hidden), len(weight)
    plan = Plan.of("fast", tokens, vocab, hidden.new_empty(0, dtype=torch.float32))
    logits_RV = hidden.new_empty(min(plan.rows, tokens), vocab)
    hidden_grad_TD, weight_grad_VD = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        for rows in plan.chunks(tokens):
            part_RV = torch.mm(hidden[rows], weight.t(), out=logits_RV[: rows.stop - rows.start])
            torch.mm(part_RV, weight, out=hidden_grad_TD[rows])
            torch.mm(part_RV.t(), hidden[rows], out=weight_grad_VD)

    return run


def whole_logits(hidden: Tensor, weight: Tensor, target_T: Tensor) -> Tensor:
    return (hidden @ weight.t()).float().log_softmax(-1).gather(1, target_T[:, None])[:, 0]


def moved_bytes(problem: HeadProblem) -> int:
    """What lies between the products: logits are read twice and written once more."""
    return 3 * 4 * problem.shape["T"] * problem.shape["V"]


def three_products_case(op: str, problem: HeadProblem, candidates: list[Candidate]) -> Case:
    return Case(
        op,
        problem.shape,
        problem.dtype,
        candidates,
        moved_bytes=moved_bytes(problem),
        flops=3 * problem.flops_per_gemm,
        floor=bare_products(problem),
    )


def surrogate_case(problem: HeadProblem) -> Case:
    target_T = problem.fields.target_T

    def loss_of(logprob_T: Tensor) -> Tensor:
        return policy_loss(logprob_T, None, problem.fields, SPEC)[0]

    candidates = [
        Candidate("auto", fused(problem, problem.fields), MODE),
        Candidate("auto, lean", fused(problem, problem.fields, mode="lean"), MODE),
        Candidate("reference", fused(problem, problem.fields, backend="reference"), MODE),
        Candidate(
            "log-probs recomputed in backward",
            by_autograd(problem, lambda h, w: loss_of(linear_logprob(h, w, target_T)[0])),
            MODE,
        ),
        Candidate(
            "whole logits", by_autograd(problem, lambda h, w: loss_of(whole_logits(h, w, target_T))), MODE, peer=True
        ),
    ]
    return three_products_case("linear_policy_loss", problem, candidates)


def sft_case(problem: HeadProblem) -> Case:
    """The loss that torch's own head has, too: the mean negative log-prob."""
    target_T, tokens = problem.fields.target_T, problem.shape["T"]
    fields = TokenFields(target_T, sft_weight_T=torch.full((tokens,), 1.0 / tokens, device=target_T.device))
    candidates = [Candidate("auto", fused(problem, fields), MODE)]
    torch_own = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if torch_own is not None:
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

        options = LinearCrossEntropyOptions()
        loss = by_autograd(problem, lambda h, w: torch_own(h, w, target_T, options=options))
        candidates.append(Candidate("torch linear_cross_entropy, chunked", loss, MODE, peer=True))
    return three_products_case("linear_policy_loss (sft)", problem, candidates)


def active_case(problem: HeadProblem) -> Case:
    """All rows, and a fifth of them with weight."""
    generator = torch.Generator().manual_seed(1)
    active_T = (torch.rand(problem.shape["T"], generator=generator) < ACTIVE).to(problem.hidden_TD.device)
    fields = problem.fields
    assert fields.rl_weight_T is not None and fields.adv_weight_T is not None
    some = replace(fields, rl_weight_T=fields.rl_weight_T * active_T, adv_weight_T=fields.adv_weight_T * active_T)
    candidates = [
        Candidate("auto, all rows", fused(problem, fields), MODE),
        Candidate("auto, a fifth of the rows", fused(problem, some), MODE),
    ]
    return Case("linear_policy_loss (active rows)", problem.shape, problem.dtype, candidates)


def cases(options: Options) -> list[Case]:
    made = (surrogate_case, sft_case, active_case)
    return [make(problem) for problem in head_problems(options) for make in made]


if __name__ == "__main__":
    raise SystemExit(main(cases))
