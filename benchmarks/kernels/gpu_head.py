"""The LM head on a GPU against its floor and against peers, at Qwen3's vocabulary.

    python -m benchmarks.kernels.gpu_head [--smoke] [--output FILE]

Three cases a hidden size: the SFT loss (peers: liger-kernel, quack, cut-cross-entropy, torch's own), a clipped
surrogate (peer: TRL's chunked log-probs), and log-probs without gradients (stored logits against none). The floor is
the sum of the bare products of the same chunks, and of the bytes that the plan moves, in the same run. A peer that is
not installed is named and left out.

Targets: fast mode at most 1.08 x (three products + bytes), which is about 1.40, 1.20, 1.15 x the products alone at
hidden sizes 1024, 2560, 5120, with at most 2.6 GB beside inputs and gradients; lean mode at most 1.30, 1.17, 1.12 x
four products with at most 320 MB beside the accumulator of dHidden; no peer faster.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from aapa.kernels import TokenFields, TokenLossSpec, linear_logprob, linear_policy_loss, policy_loss
from aapa.kernels.chunked.plan import MAX_ROWS
from aapa.kernels.chunked.products import add_product, operand_dtype, product
from aapa.kernels.reference.vocab_parallel import statistics_dtype
from benchmarks.harness import (
    Candidate,
    Case,
    Row,
    add_arguments,
    commit,
    device_name,
    measure,
    parse_options,
    print_table,
    versions,
)
from benchmarks.kernels.head_problem import HeadProblem, head_problems

MODE = "forward+backward"
TARGET = 1.08
ROUNDS = 20


def peer(module: str, name: str) -> Callable[..., Any] | None:
    """What a peer calls its head; None, and said so, where it cannot be imported here."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"gpu_head: {module} is left out: {error}")
        return None
    return found


def differentiated(problem: HeadProblem, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    hidden, weight = (x.clone().requires_grad_() for x in (problem.hidden_TD, problem.weight_VD))
    return lambda: torch.autograd.grad(loss(hidden, weight), (hidden, weight))


def products(problem: HeadProblem, count: int) -> Callable[[], Any]:
    """The bare products of the chunk loop: logits, dHidden, dWeight into float32; with a fourth, logits again."""
    hidden, weight = problem.hidden_TD, problem.weight_VD
    operand, wide = operand_dtype(hidden, weight), statistics_dtype(hidden)
    total = torch.zeros_like(weight, dtype=wide)

    def run() -> None:
        for part in hidden.split(MAX_ROWS):
            logits = torch.empty(len(part), len(weight), dtype=wide, device=part.device)
            for _ in range(count - 2):
                product(part, weight.t(), logits)
            grad = logits.view(operand)[:, : len(weight)]
            product(grad, weight, torch.empty_like(part))
            add_product(total, grad.t(), part)

    return run


def moved_bytes(problem: HeadProblem) -> int:
    """Of the plan, beside the products' own: two reads of float32 logits, a write of their gradient."""
    wide, narrow = statistics_dtype(problem.hidden_TD).itemsize, problem.hidden_TD.itemsize
    return problem.shape["T"] * problem.shape["V"] * (2 * wide + narrow)


def moving(problem: HeadProblem) -> Callable[[], Any]:
    size = moved_bytes(problem) // 2 // len(problem.hidden_TD) * min(len(problem.hidden_TD), MAX_ROWS)
    source = torch.empty(max(1, size), dtype=torch.uint8, device=problem.hidden_TD.device).random_()
    target = torch.empty_like(source)
    times = -(-len(problem.hidden_TD) // MAX_ROWS)
    return lambda: [target.copy_(source) for _ in range(times)]


def sft_peers(problem: HeadProblem) -> list[Candidate]:
    target = problem.fields.target_T
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    torch_own = getattr(torch.nn.functional, "linear_cross_entropy", None)
    # Torch 2.11 has neither; without options torch's own does not chunk.
    if torch_own is not None:
        options = importlib.import_module("torch.nn.modules.linear_cross_entropy_options").LinearCrossEntropyOptions()
        losses["torch"] = lambda h, w: torch_own(h, w, target, options=options)
    if problem.hidden_TD.is_cuda:
        liger = peer("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
        if liger is not None:
            losses["liger"] = lambda h, w: liger(h, w, target, accum_dtype=torch.float32)
        quack = peer("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
        if quack is not None:
            losses["quack"] = lambda h, w: quack(h, w, target)
        cce = peer("cut_cross_entropy", "linear_cross_entropy")
        if cce is not None:
            losses["cut-cross-entropy"] = lambda h, w: cce(h, w, target)
    return [Candidate(name, differentiated(problem, loss), MODE) for name, loss in losses.items()]


def ours(problem: HeadProblem, fields: TokenFields, mode: str) -> Callable[[], Any]:
    hidden, weight = (x.clone().requires_grad_() for x in (problem.hidden_TD, problem.weight_VD))
    main_grad = torch.zeros_like(weight, dtype=torch.float32)

    def run() -> None:
        loss, _ = linear_policy_loss(hidden, weight, fields, TokenLossSpec(), main_grad=main_grad, mode=mode)
        torch.autograd.grad(loss, hidden)

    return run


def sft_case(problem: HeadProblem) -> Case:
    tokens = problem.shape["T"]
    weight_T = torch.full((tokens,), 1.0 / tokens, device=problem.hidden_TD.device)
    fields = TokenFields(problem.fields.target_T, sft_weight_T=weight_T)
    candidates = [
        Candidate("aapa", ours(problem, fields, "fast"), MODE),
        Candidate("aapa lean", ours(problem, fields, "lean"), MODE),
        Candidate("three products", products(problem, 3), MODE),
        Candidate("four products", products(problem, 4), MODE),
        Candidate("bytes", moving(problem), MODE),
    ]
    flops = 3 * problem.flops_per_gemm
    return Case("sft head", problem.shape, problem.dtype, [*candidates, *sft_peers(problem)], flops=flops)


def surrogate_case(problem: HeadProblem) -> Case:
    fields, spec = problem.fields, TokenLossSpec()
    candidates = [
        Candidate("aapa", ours(problem, fields, "fast"), MODE),
        Candidate("three products", products(problem, 3), MODE),
        Candidate("bytes", moving(problem), MODE),
    ]
    function = peer("trl.kernels.chunked_logprob", "ChunkedLogProbFunction") if problem.hidden_TD.is_cuda else None
    if function is not None:

        def trl(hidden: Tensor, weight: Tensor) -> Tensor:
            # TRL's default width of a tile, and no output but the log-probs.
            logprob_T = function.apply(hidden, weight, None, fields.target_T, 1.0, 8192, None, 1.0, ())[0]
            return policy_loss(logprob_T, None, fields, spec)[0]

        candidates.append(Candidate("trl", differentiated(problem, trl), MODE))
    return Case("policy head", problem.shape, problem.dtype, candidates, flops=3 * problem.flops_per_gemm)


def scoring_case(problem: HeadProblem) -> Case:
    hidden, weight, target = problem.hidden_TD, problem.weight_VD, problem.fields.target_T
    candidates = [Candidate("stored logits", torch.no_grad()(lambda: linear_logprob(hidden, weight, target)))]
    if hidden.is_cuda:
        from aapa.kernels.chunked.shard import Shard
        from aapa.kernels.triton import fused_scoring

        shard = Shard(hidden, weight, None, None)
        candidates.append(Candidate("no logits", lambda: fused_scoring.scores(hidden, target, None, shard)))
        candidates.append(Candidate("one product", lambda: hidden @ weight.t()))
    return Case("scoring", problem.shape, problem.dtype, candidates, flops=problem.flops_per_gemm)


def verdict(rows: list[Row]) -> str:
    """Ours over the floor, and what `fused_scoring.MEASURED_EFFICIENCY` is to hold."""
    ms = {row.backend: row.p50_ms for row in rows}
    if "three products" in ms:
        ratio = ms["aapa"] / (ms["three products"] + ms["bytes"])
        return f"aapa / (three products + bytes) = {ratio:.3f}, target {TARGET} at most"
    if "no logits" in ms:
        return f"efficiency of the product without logits: {ms['one product'] / ms['no logits']:.3f}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ROUNDS)
    parsed = parser.parse_args()
    options = parse_options(parsed, ROUNDS)
    for problem in head_problems(options):
        for make in (sft_case, surrogate_case, scoring_case):
            rows = measure(make(problem), options)
            for row in rows:
                row.device, row.versions, row.commit = device_name(options.device), versions(), commit()
            print_table(rows)
            print(verdict(rows))
            if parsed.output is not None:
                with parsed.output.open("a") as file:
                    file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
