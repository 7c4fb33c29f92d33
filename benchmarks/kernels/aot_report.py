"""What the compiler makes of every Triton kernel on GPUs that are not here: registers, spills, shared memory, matrix
instructions.

    python -m benchmarks.kernels.aot_report [--target sm90] [--output FILE]

Exits with 1 where registers spill, a block takes more shared memory than the GPU has, or a product of half-precision
matrices has no matrix instruction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from aapa.kernels import SentenceHead, TokenFields, TokenLossSpec
from aapa.kernels.chunked.glue import RowTerms
from aapa.kernels.sentence_scores import KERNEL_RANK
from aapa.kernels.triton import fused_scoring
from aapa.kernels.triton.anchor_advantages import anchor_advantages
from aapa.kernels.triton.logit_rows import logits_gradient, row_statistics
from aapa.kernels.triton.policy_loss import policy_loss
from aapa.kernels.triton.segment_mean import segment_means
from aapa.kernels.triton.sentence_scores import sentence_scores
from benchmarks.kernels.ahead_of_time import TARGETS, Launch, Report, Target, launches, report

# Sizes decide which types and alignments a launch has, not what is compiled beyond that; nothing is computed here.
TOKENS, HIDDEN, VOCAB, WIDTH = 256, 1024, 4096, 256
# Projected sizes of sentence scores: the smallest block, one that is not full, and the largest that is accepted.
RANKS = (16, 100, KERNEL_RANK)
SPECS = (
    TokenLossSpec(),
    TokenLossSpec(delta=1.5, kl="k2", phi=True),
    TokenLossSpec(surrogate="cispo", kl="k1", kl_correction=True),
    TokenLossSpec(ratio_level="sequence", kl_correction=True),
)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def offsets(count: int) -> Tensor:
    return torch.arange(0, TOKENS + 1, TOKENS // count, dtype=torch.int32)


def losses() -> None:
    vector, target = zeros(TOKENS), zeros(TOKENS, dtype=torch.int64)
    everything = TokenFields(
        target, None, vector, vector, vector, vector, None, vector, vector, vector, vector, vector, vector, target
    )
    for spec in SPECS:
        policy_loss(vector, vector, everything, spec)
    policy_loss(vector, None, TokenFields(target, sft_weight_T=vector), TokenLossSpec())
    policy_loss(vector, None, TokenFields(target, rl_weight_T=vector, advantage_T=vector), TokenLossSpec())


def logits() -> None:
    logits_RV, vector, column_R = zeros(TOKENS, VOCAB), zeros(TOKENS), zeros(TOKENS, dtype=torch.int64)
    for scale_R in (vector, None):
        row_statistics(logits_RV, column_R, scale_R)
    for dtype in (torch.bfloat16, torch.float32):
        for entropy_grad_R in (None, vector):
            terms = RowTerms(column_R, vector, vector, vector, vector, entropy_grad_R)
            logits_gradient(logits_RV, column_R, terms, dtype)


def sentences() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        segment_means(zeros(TOKENS, HIDDEN, dtype=dtype), offsets(16))
    for rank in RANKS:
        head = SentenceHead(
            zeros(rank, HIDDEN), zeros(rank), zeros(WIDTH, 4 * rank), zeros(WIDTH), zeros(WIDTH), zeros(1)[0], 0.5
        )
        sentence_scores(zeros(TOKENS, HIDDEN), offsets(16), zeros(TOKENS, HIDDEN), offsets(16), head)
    every = torch.ones(16, dtype=torch.bool)
    for scale, credit, anchored in (("group", "sentence", None), ("batch", "return", every), ("none", "return", every)):
        options = {"mean": 0.0, "std": 1.0, "clip": 3.0, "aggregation": "grpo", "discount": 1.0, "eps": 1e-4}
        options |= {"scale": scale, "credit": credit, "anchored_N": anchored, "anchored_S": anchored}
        anchor_advantages(zeros(16), zeros(16), offsets(16), offsets(16), zeros(16, dtype=torch.int64), **options)


def scoring(target: Target) -> None:
    column_T, vector = zeros(TOKENS, dtype=torch.int64), zeros(TOKENS)
    hidden, weight = (zeros(size, HIDDEN, dtype=torch.bfloat16) for size in (TOKENS, VOCAB))
    with mock.patch.object(fused_scoring, "tile_of", return_value=fused_scoring.TILES[target.name]):
        for scale_T in (vector, None):
            fused_scoring.scored_rows(hidden, weight, column_T, scale_T)


def reports(target: Target, only: Callable[[Launch], bool] = lambda launch: True) -> Iterator[Report]:
    """A report of every kernel and variant that passes `only`."""
    for run in (losses, logits, sentences, lambda: scoring(target)):
        for launch in launches(run):
            if only(launch):
                yield report(launch, target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="may be given several times")
    parser.add_argument("--output", type=Path, help="file to which JSON lines are appended")
    parsed = parser.parse_args(arguments)
    columns = ("kernel", "target", "warps", "stages", "registers", "spilled B", "shared B", "matrix instructions")
    print("{:<16} {:<7} {:>6} {:>7} {:>10} {:>10} {:>9} {:>20}".format(*columns))
    faults: list[str] = []
    for name in parsed.target or list(TARGETS):
        for found in reports(TARGETS[name]):
            warps, stages = found.options["num_warps"], found.options.get("num_stages", "-")
            print(
                f"{found.kernel:<16} {found.target:<7} {warps:>6} {stages:>7} {found.registers:>10}"
                f" {found.spilled:>10} {found.shared:>9} {found.matrix if found.expects_matrix else '-':>20}",
                flush=True,
            )
            faults += found.faults()
            if parsed.output is not None:
                with parsed.output.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
    for fault in faults:
        print(f"aot_report: {fault}")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
