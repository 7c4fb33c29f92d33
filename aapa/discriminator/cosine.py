"""The training-free discriminator: cosine with the nearest expert sentence (2.3).

Shape legend: S sentences, E expert sentences, N sentence-expert pairs, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from aapa.discriminator.base import Origin, discriminator_hash
from aapa.kernels.reference.sentence_scores import pair_indices
from aapa.sentences import Granularity


def nearest_cosine(sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
    """max_j cos(u_k, e_j) over the expert sentences of the group, [S]; -inf for groups that have none."""
    dtype = torch.promote_types(sentence_SD.dtype, torch.float32)
    sentence_SD, expert_ED = normalize(sentence_SD.to(dtype), dim=1), normalize(expert_ED.to(dtype), dim=1)
    sentence_N, expert_N = pair_indices(cu_group, cu_expert)
    cosine_N = (sentence_SD[sentence_N] * expert_ED[expert_N]).sum(1)
    lowest_S = cosine_N.new_full((sentence_SD.shape[0],), -torch.inf)
    return lowest_S.scatter_reduce(0, sentence_N, cosine_N, "amax")


@dataclass(frozen=True)
class CosineDiscriminator:
    """s_k = max_j cos(u_k, e_j) - constant (2.3), the constant being the mean on held-out rollouts."""

    constant: float
    mean: float
    std: float
    origin: Origin
    granularity: Granularity = "sentence"

    @property
    def kind(self) -> str:
        return "cosine"

    @cached_property
    def hash(self) -> str:
        return discriminator_hash(self)

    @torch.no_grad()
    def score(self, sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
        cosine_S = nearest_cosine(sentence_SD, cu_group, expert_ED, cu_expert)
        return torch.where(cosine_S.isneginf(), 0.0, cosine_S - self.constant)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def scalars(self) -> dict[str, float]:
        return {"constant": self.constant}

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, float],
        mean: float,
        std: float,
        origin: Origin,
        granularity: Granularity,
    ) -> CosineDiscriminator:
        return cls(scalars["constant"], mean, std, origin, granularity)
