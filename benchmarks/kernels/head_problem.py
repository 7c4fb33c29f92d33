"""The LM-head problem that the head's benchmarks share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aapa.kernels import TokenFields
from benchmarks.harness import Options


@dataclass(frozen=True)
class HeadProblem:
    """Hidden states, head weight and the fields of a clipped surrogate with an anchor.

    Attributes:
        flops_per_gemm: of one product of hidden states and head.
    """

    shape: dict[str, int]
    dtype: str
    hidden_TD: Tensor
    weight_VD: Tensor
    fields: TokenFields

    @property
    def flops_per_gemm(self) -> int:
        return 2 * self.shape["T"] * self.shape["V"] * self.shape["H"]


def head_problems(options: Options) -> list[HeadProblem]:
    """Small on a CPU, Qwen3's vocabulary on a GPU."""
    if options.smoke:
        sizes, dtype = [(64, 32, 100)], "float32"
    elif options.device.type == "cuda":
        sizes, dtype = [(16384, 1024, 151936), (16384, 2560, 151936), (16384, 5120, 151936)], "bfloat16"
    else:
        sizes, dtype = [(4096, 128, 32768), (4096, 1024, 32768)], "float32"
    return [_problem(*size, dtype, options.device) for size in sizes]


def _problem(tokens: int, hidden: int, vocab: int, dtype: str, device: torch.device) -> HeadProblem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = torch.full((tokens,), 1.0 / tokens)
    fields = TokenFields(
        target_T=torch.randint(0, vocab, (tokens,), generator=generator).to(device),
        rl_weight_T=weight.to(device),
        adv_weight_T=weight.to(device),
        advantage_T=normal(tokens).to(device),
        anchor_advantage_T=normal(tokens).to(device),
    )
    cast = getattr(torch, dtype)
    return HeadProblem(
        {"T": tokens, "H": hidden, "V": vocab},
        dtype,
        normal(tokens, hidden).to(device, cast),
        (normal(vocab, hidden) * hidden**-0.5).to(device, cast),
        fields,
    )
