"""Started by torchrun: the head with its vocabulary split over 2 and over 4 processes against one, in float64.

Every rank computes the whole, compares its part of it, and exits with an error if they differ by more than 1e-10.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from test_chunked_head import SPECS, problem

from aapa.kernels import linear_logprob, linear_policy_loss
from aapa.kernels.chunked import plan

# Chunks and blocks so small that loops go round.
plan.MIN_ROWS, plan.MIN_COLUMNS = 8, 4
plan.CHUNK_BYTES["cpu"] = plan.LEAN_BYTES["cpu"] = 1


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def check(
    group: dist.ProcessGroup, backend: str, spec_name: str, tokens: int, vocab: int, mode: str, sequence_parallel: bool
) -> None:
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    # The last ranks may hold nothing but padding.
    padding = 4 * ranks - vocab if vocab < 4 * ranks else -vocab % ranks
    hidden, weight, fields = problem(tokens, 6, vocab, padding, SPECS[spec_name], 0.7)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    own_hidden = hidden.detach().chunk(ranks)[rank] if sequence_parallel else hidden.detach()
    parts = own_hidden.clone().requires_grad_(), weight.detach().chunk(ranks)[rank].clone().requires_grad_()
    split = {"vocab_size": vocab, "tp_group": group, "sequence_parallel": sequence_parallel}

    def compare(whole: torch.Tensor, part: torch.Tensor) -> None:
        want, got = torch.autograd.grad(whole, leaves), torch.autograd.grad(part, parts)
        same(part.detach(), whole.detach())
        same(got[0], want[0].chunk(ranks)[rank] if sequence_parallel else want[0])
        same(got[1], want[1].chunk(ranks)[rank])

    loss, metrics = linear_policy_loss(*leaves, fields, SPECS[spec_name], vocab_size=vocab, backend="reference")
    part, figures = linear_policy_loss(*parts, fields, SPECS[spec_name], mode=mode, backend=backend, **split)
    for name, value in metrics.items():
        same(figures[name], value)
    compare(loss, part)
    temperature, mix = fields.temperature_T, torch.linspace(-1, 1, tokens, dtype=torch.float64)
    whole = linear_logprob(
        *leaves, fields.target_T, temperature=temperature, entropy=True, vocab_size=vocab, backend="reference"
    )
    mine = linear_logprob(
        *parts, fields.target_T, temperature=temperature, entropy=True, backend=backend, **split
    )  # fmt: skip
    same(mine[0], whole[0])
    same(mine[1], whole[1])
    compare((mix * whole[0] + whole[1]).sum(), (mix * mine[0] + mine[1]).sum())


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
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
