"""Every operation against float64 and against plain torch in its own type, in every order of programs.

The error of a kernel is at most that of the plain implementation in the same type plus TOLERANCE, each as a share of
the largest value; all orders give the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cases import DEVICE, SPECS, half_precision_products, in_order, token_fields
from sanitizer import ORDERS
from torch import Tensor

from aapa.kernels import (
    SentenceHead,
    TokenFields,
    anchor_advantages,
    linear_logprob,
    linear_policy_loss,
    policy_loss,
    reference_head,
    sentence_scores,
)
from aapa.kernels.triton import fused_scoring

# Four roundings of float32; 16 on a GPU, whose exponentials are less exact than the interpreter's.
TOLERANCE = 2.0**-22 if DEVICE == "cpu" else 2.0**-20
TOKENS, HIDDEN, VOCAB, PADDING = 40, 64, 70, 3
Inputs = dict[str, Any]
Outputs = list[Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def offsets(*counts: int) -> Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32, device=DEVICE).cumsum(0, dtype=torch.int32)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """The floating-point tensors in it, in a type."""
    if isinstance(value, TokenFields | SentenceHead):
        changed = {f.name: cast(getattr(value, f.name), dtype) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def head_inputs(dtype: torch.dtype) -> Inputs:
    _, _, fields = token_fields(TOKENS, 7)
    generator = torch.Generator().manual_seed(0)
    target_T = torch.randint(0, VOCAB, (TOKENS,), generator=generator).to(DEVICE)
    temperature_T = (0.5 + torch.rand(TOKENS, generator=generator)).to(DEVICE)
    fields = dataclasses.replace(fields, target_T=target_T, temperature_T=temperature_T)
    hidden_TD, weight_VD = normal(TOKENS, HIDDEN, seed=1), normal(VOCAB + PADDING, HIDDEN, seed=2) / 4
    return {"hidden": hidden_TD.to(dtype), "weight": weight_VD.to(dtype), "fields": cast(fields, torch.float32)}


def leaves_of(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["hidden"].clone().requires_grad_(), inputs["weight"].clone().requires_grad_()


def mixed(logprob_T: Tensor, entropy_T: Tensor, leaves: tuple[Tensor, Tensor]) -> Outputs:
    """Both, and the gradients of a sum of both with weights of both signs."""
    mix_T = torch.linspace(-1, 1, TOKENS, dtype=logprob_T.dtype, device=DEVICE)
    grads = torch.autograd.grad((mix_T * logprob_T + (1 - mix_T) * entropy_T).sum(), leaves)
    return [logprob_T.detach(), entropy_T.detach(), *grads]


def log_probs(inputs: Inputs, backend: str) -> Outputs:
    leaves, fields = leaves_of(inputs), inputs["fields"]
    options = {"temperature": fields.temperature_T, "entropy": True, "vocab_size": VOCAB, "backend": backend}
    return mixed(*linear_logprob(*leaves, fields.target_T, **options), leaves)


def scoring(inputs: Inputs, backend: str) -> Outputs:
    fields = inputs["fields"]
    options = {"temperature": fields.temperature_T, "entropy": True, "vocab_size": VOCAB, "backend": backend}
    return list(linear_logprob(inputs["hidden"], inputs["weight"], fields.target_T, **options))


def whole_logits(inputs: Inputs) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Log-probs and entropies as one writes them: the product in the type of its operands, the rest in float32."""
    leaves, fields = leaves_of(inputs), inputs["fields"]
    logits_TV = (leaves[0] @ leaves[1][:VOCAB].t()).float() / fields.temperature_T[:, None]
    log_p_TV = logits_TV.log_softmax(-1)
    return log_p_TV.gather(1, fields.target_T[:, None])[:, 0], -(log_p_TV.exp() * log_p_TV).sum(-1), leaves


def whole_log_probs(inputs: Inputs) -> Outputs:
    return mixed(*whole_logits(inputs))


def head(mode: str, spec: str) -> Callable[[Inputs, str], Outputs]:
    def run(inputs: Inputs, backend: str) -> Outputs:
        leaves = leaves_of(inputs)
        options = {"vocab_size": VOCAB, "mode": mode, "backend": backend}
        loss, _ = linear_policy_loss(*leaves, inputs["fields"], SPECS[spec], **options)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return run


def whole_head(spec: str) -> Callable[[Inputs], Outputs]:
    def run(inputs: Inputs) -> Outputs:
        logprob_T, entropy_T, leaves = whole_logits(inputs)
        loss, _ = policy_loss(logprob_T, entropy_T, inputs["fields"], SPECS[spec], backend="reference")
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return run


def loss_inputs(dtype: torch.dtype) -> Inputs:
    logprob_T, _, fields = token_fields(300, 3)
    return {"logprob": logprob_T.to(dtype), "fields": cast(fields, torch.float32)}


def loss(spec: str) -> Callable[[Inputs, str], Outputs]:
    def run(inputs: Inputs, backend: str) -> Outputs:
        logprob_T = inputs["logprob"].clone().requires_grad_()
        value, _ = policy_loss(logprob_T, None, inputs["fields"], SPECS[spec], backend=backend)
        return [value.detach(), *torch.autograd.grad(value, logprob_T)]

    return run


def frozen(inputs: Inputs, backend: str) -> Outputs:
    target_T, cu_sents = inputs["fields"].target_T, offsets(5, TOKENS - 6, 1)
    options = {"temperature": 0.7, "vocab_size": VOCAB, "backend": backend}
    return list(reference_head(inputs["hidden"], inputs["weight"], target_T, cu_sents, **options))


def score_inputs(dtype: torch.dtype) -> Inputs:
    rank, width = 20, 24
    parts = [normal(rank, HIDDEN, seed=1) / 8, normal(rank, seed=2), normal(width, 4 * rank, seed=3) / 8]
    parts += [normal(width, seed=4), normal(width, seed=5), normal(1, seed=6)[0]]
    sentence_SD, expert_ED = normal(36, HIDDEN, seed=7), normal(23, HIDDEN, seed=8)
    head = cast(SentenceHead(*parts, tau=0.7), torch.float32)
    return {"sentence": sentence_SD.to(dtype), "expert": expert_ED.to(dtype), "head": head}


def scores(inputs: Inputs, backend: str) -> Outputs:
    groups, experts = offsets(20, 0, 15, 1), offsets(2, 1, 20, 0)
    return [sentence_scores(inputs["sentence"], groups, inputs["expert"], experts, inputs["head"], backend=backend)]


def advantage_inputs(dtype: torch.dtype) -> Inputs:
    return {"score": (3 * normal(12, seed=1)).to(dtype), "reward": normal(6, seed=2).float()}


def advantages(credit: str, aggregation: str) -> Callable[[Inputs, str], Outputs]:
    def run(inputs: Inputs, backend: str) -> Outputs:
        lengths = [3, 1, 150, 2, 9, 9, 30, 1, 1, 5, 40, 7]
        ends = offsets(*(sum(lengths[place : place + 2]) for place in range(0, 12, 2)))
        group_N = torch.tensor([5, -1, 5, 5, -1, 5], device=DEVICE)
        options = {"mean": 0.3, "std": 1.7, "aggregation": aggregation, "credit": credit, "discount": 0.9}
        return list(
            anchor_advantages(
                inputs["score"], inputs["reward"], offsets(*lengths), ends, group_N, **options, backend=backend
            )
        )

    return run


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation, or one of its ways.

    Attributes:
        inputs: in a type, already rounded.
        run: the operation with a backend.
        plain: what one would write, where that is not the reference: products of half precision round more than the
            reference does, which has float32 logits from float32 operands.
        dtypes: that it is checked in.
        half: whether products take half precision in, as on a GPU.
    """

    inputs: Callable[[torch.dtype], Inputs]
    run: Callable[[Inputs, str], Outputs]
    plain: Callable[[Inputs], Outputs] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    half: bool = False


ONLY_HALF = (torch.bfloat16,)
OPERATIONS = {
    "linear_logprob": Operation(head_inputs, log_probs, whole_log_probs),
    "linear_logprob, half products": Operation(head_inputs, log_probs, whole_log_probs, ONLY_HALF, half=True),
    "linear_logprob, no logits": Operation(head_inputs, scoring, dtypes=ONLY_HALF),
    "linear_policy_loss": Operation(head_inputs, head("fast", "clip"), whole_head("clip")),
    "linear_policy_loss, lean": Operation(head_inputs, head("lean", "clip"), whole_head("clip")),
    "linear_policy_loss, sequence": Operation(head_inputs, head("fast", "sequence"), whole_head("sequence")),
    "linear_policy_loss, half products": Operation(
        head_inputs, head("fast", "clip"), whole_head("clip"), ONLY_HALF, half=True
    ),
    "linear_policy_loss, lean, half products": Operation(
        head_inputs, head("lean", "clip"), whole_head("clip"), ONLY_HALF, half=True
    ),
    **{f"policy_loss, {name}": Operation(loss_inputs, loss(name)) for name in SPECS},
    "reference_head": Operation(head_inputs, frozen),
    "sentence_scores": Operation(score_inputs, scores),
    "anchor_advantages": Operation(advantage_inputs, advantages("sentence", "dapo")),
    "anchor_advantages, return": Operation(advantage_inputs, advantages("return", "grpo")),
}
RUNS = [(name, dtype) for name, operation in OPERATIONS.items() for dtype in operation.dtypes]


@cache
def known(name: str, dtype: torch.dtype) -> tuple[Outputs, Outputs]:
    """(truth, plain)."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(dtype)
    truth = operation.run({key: cast(value, torch.float64) for key, value in inputs.items()}, "reference")
    # On a GPU products of half precision take it in without being told to.
    half = operation.half or (DEVICE == "cuda" and dtype != torch.float32)
    if half and operation.plain is not None:
        return truth, operation.plain(inputs)
    return truth, operation.run(inputs, "reference")


def error(got: Tensor, truth: Tensor) -> float:
    return ((got.double() - truth).abs().max() / truth.abs().max()).item()


FOUND: dict[tuple[str, torch.dtype], Outputs] = {}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=[f"{name}, {str(dtype)[6:]}" for name, dtype in RUNS])
def test_error_is_no_larger_than_that_of_plain_torch(name, dtype, order, monkeypatch):
    truth, plain = known(name, dtype)
    operation = OPERATIONS[name]
    # So that rows of logits take several blocks, and sentences several pieces.
    monkeypatch.setattr("aapa.kernels.triton.logit_rows.MOST_COLUMNS", 32)
    monkeypatch.setattr("aapa.kernels.triton.segment_mean.LENGTH", 16)
    if operation.half and DEVICE == "cpu":
        half_precision_products(monkeypatch)
    if operation.run is scoring:
        monkeypatch.setattr(fused_scoring, "pays", lambda hidden, weight: True)
    with in_order(order):
        got = operation.run(operation.inputs(dtype), "triton")
    assert len(got) == len(plain) == len(truth)
    for place, (mine, theirs, exact) in enumerate(zip(got, plain, truth, strict=True)):
        assert exact.dtype == torch.float64 and mine.dtype == theirs.dtype != torch.float64
        assert error(mine, exact) <= error(theirs, exact) + TOLERANCE, place
    for mine, before in zip(got, FOUND.setdefault((name, dtype), got), strict=True):
        assert torch.equal(mine, before)
