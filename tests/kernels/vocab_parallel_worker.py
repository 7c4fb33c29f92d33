"""Started by torchrun: the head with its vocabulary split over 2 and over 4 processes against one, in float64.

Every rank computes the whole, compares its part of it, and exits with an error if they differ by more than 1e-10. What
all ranks have must have the same bits on each: they go on from it apart.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from test_chunked_head import SPECS, problem

from aapa.kernels import TokenFields, linear_logprob, linear_policy_loss, reference_head
from aapa.kernels.chunked import plan
from aapa.kernels.chunked.glue import Glue

# Chunks and blocks so small that loops go round.
plan.MIN_ROWS, plan.MIN_COLUMNS = 8, 4
plan.CHUNK_BYTES["cpu"] = plan.LEAN_BYTES["cpu"] = 1


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def same_bits(group: dist.ProcessGroup, *found: torch.Tensor) -> None:
    """Every rank has the same."""
    for mine in found:
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyones, mine.contiguous(), group=group)
        assert all(torch.equal(one, mine) for one in everyones)


def split_up(
    group: dist.ProcessGroup, spec_name: str, tokens: int, vocab: int, sequence_parallel: bool
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], TokenFields, dict[str, Any]]:
    """(hidden states and weight, this rank's part of both, fields, options that say how they are split)."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    # The last ranks may hold nothing but padding.
    padding = 4 * ranks - vocab if vocab < 4 * ranks else -vocab % ranks
    hidden, weight, fields = problem(tokens, 6, vocab, padding, SPECS[spec_name], 0.7)
    own_hidden = hidden.chunk(ranks)[rank] if sequence_parallel else hidden
    parts = own_hidden.clone().requires_grad_(), weight.chunk(ranks)[rank].clone().requires_grad_()
    options = {"vocab_size": vocab, "tp_group": group, "sequence_parallel": sequence_parallel}
    return (hidden.requires_grad_(), weight.requires_grad_()), parts, fields, options


def check(
    group: dist.ProcessGroup, backend: str, spec_name: str, tokens: int, vocab: int, mode: str, sequence_parallel: bool
) -> None:
    """Loss and log-probs with their gradients, and the accumulator of dWeight."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    leaves, parts, fields, split = split_up(group, spec_name, tokens, vocab, sequence_parallel)
    spec = SPECS[spec_name]

    def compare(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Values and gradients; this rank's part of dWeight."""
        want, got = torch.autograd.grad(whole, leaves), torch.autograd.grad(part, parts)
        same(part.detach(), whole.detach())
        same(got[0], want[0].chunk(ranks)[rank] if sequence_parallel else want[0])
        same(got[1], want[1].chunk(ranks)[rank])
        if not sequence_parallel:
            same_bits(group, got[0])
        return want[1].chunk(ranks)[rank]

    loss, metrics = linear_policy_loss(*leaves, fields, spec, vocab_size=vocab, backend="reference")
    part, figures = linear_policy_loss(*parts, fields, spec, mode=mode, backend=backend, **split)
    for name, value in metrics.items():
        same(figures[name], value)
    same_bits(group, part.detach(), *figures.values())
    weight_grad = compare(loss, part)
    main_grad = torch.ones_like(weight_grad)
    loss, _ = linear_policy_loss(*parts, fields, spec, main_grad=main_grad, mode=mode, backend=backend, **split)
    _, dummy = torch.autograd.grad(loss, parts)
    assert not dummy.any()
    same(main_grad - 1, weight_grad)
    temperature, mix = fields.temperature_T, torch.linspace(-1, 1, tokens, dtype=torch.float64)
    options = {"temperature": temperature, "entropy": True}
    whole = linear_logprob(*leaves, fields.target_T, **options, vocab_size=vocab, backend="reference")
    mine = linear_logprob(*parts, fields.target_T, **options, backend=backend, **split)
    same(mine[0], whole[0])
    same(mine[1], whole[1])
    same_bits(group, mine[0].detach(), mine[1].detach())
    compare((mix * whole[0] + whole[1]).sum(), (mix * mine[0] + mine[1]).sum())


def check_frozen(group: dist.ProcessGroup, backend: str, tokens: int, vocab: int, sequence_parallel: bool) -> None:
    """A frozen model's log-probs and sentence means."""
    (hidden, weight), parts, fields, split = split_up(group, "token", tokens, vocab, sequence_parallel)
    cu_sents = torch.tensor([0, 1, tokens - 3, tokens], dtype=torch.int32)
    whole = reference_head(hidden, weight, fields.target_T, cu_sents, vocab_size=vocab, backend="reference")
    mine = reference_head(*parts, fields.target_T, cu_sents, backend=backend, **split)
    compare_values(group, mine, whole)


def check_fused_scoring(group: dist.ProcessGroup, tokens: int, vocab: int, sequence_parallel: bool) -> None:
    """Log-probs without stored logits; a stand-in for the kernel, which needs a GPU or the interpreter, stores them."""
    from aapa.kernels.triton import fused_scoring
    from aapa.kernels.triton.linear_logprob import linear_logprob as triton_logprob

    (hidden, weight), parts, fields, _ = split_up(group, "token", tokens, vocab, sequence_parallel)
    # Temperatures that float32 has, for this way keeps them in it.
    temperature = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64).repeat(tokens)[:tokens]
    options = {"temperature": temperature, "entropy": True, "vocab_size": vocab, "backend": "reference"}
    whole = linear_logprob(hidden, weight, fields.target_T, **options)
    with (
        torch.no_grad(),
        mock.patch.object(fused_scoring, "pays", return_value=True),
        mock.patch.object(fused_scoring, "scored_rows", stored_logits),
    ):
        mine = triton_logprob(*parts, fields.target_T, temperature, True, vocab, group, sequence_parallel)
    compare_values(group, mine, whole)


def compare_values(
    group: dist.ProcessGroup, mine: Sequence[torch.Tensor | None], whole: Sequence[torch.Tensor | None]
) -> None:
    for got, want in zip(mine, whole, strict=True):
        assert got is not None and want is not None
        same(got, want)
        same_bits(group, got)


def stored_logits(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, column_T: torch.Tensor, scale_T: torch.Tensor | None
) -> torch.Tensor:
    """As `fused_scoring.scored_rows`."""
    return Glue().statistics(hidden_TD @ weight_VD.t(), column_T, None if scale_T is None else scale_T.double())


def main(backends: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 4
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for group in (halves[dist.get_rank() // 2], dist.group.WORLD):
        ranks = dist.get_world_size(group)
        for backend in backends:
            for vocab, spec_name in ((5, "token"), (5, "own"), (33, "token"), (33, "sequence"), (33, "own")):
                for mode, sequence_parallel in (("fast", False), ("fast", True), ("lean", True)):
                    check(group, backend, spec_name, 10 * ranks, vocab, mode, sequence_parallel)
            check(group, backend, "token", 10 * ranks, 32, "lean", False)
            check(group, backend, "token", ranks, 32, "fast", True)  # one token a rank
            for vocab in (5, 33):
                for sequence_parallel in (False, True):
                    check_frozen(group, backend, 10 * ranks, vocab, sequence_parallel)
        for vocab in (5, 33) if find_spec("triton") is not None else ():
            for sequence_parallel in (False, True):
                check_fused_scoring(group, 10 * ranks, vocab, sequence_parallel)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
