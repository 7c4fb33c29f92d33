"""The default discriminator: soft alignment with the expert sentences and a small MLP (2.1).

Shape legend: S sentences, E expert sentences, D hidden size, R projected size, F = 4 R features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from aapa.discriminator.base import Origin, discriminator_hash
from aapa.kernels import SentenceHead, sentence_scores
from aapa.kernels.reference.sentence_scores import aligned_features
from aapa.sentences import Granularity


class SentenceModel(nn.Module):
    """The trainable form of (2.1): P and the MLP, on standardised features.

    The alignment's tau is `temperature` times sqrt(R), so that a temperature means the same softness at every
    rank.
    """

    def __init__(self, hidden_size: int, rank: int, width: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, rank, bias=False)
        self.hidden = nn.Linear(4 * rank, width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, 1)
        self.tau = temperature * math.sqrt(rank)

    def forward(self, sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
        """Scores [S]; every group needs an expert sentence."""
        feature_SF, _ = aligned_features(
            self.projection(sentence_SD), cu_group, self.projection(expert_ED), cu_expert, self.tau
        )
        hidden_SH = self.dropout(nn.functional.gelu(self.hidden(feature_SF)))
        score_S: Tensor = self.output(hidden_SH).squeeze(1)
        return score_S

    @torch.no_grad()
    def head(self, mean_D: Tensor, std_D: Tensor) -> SentenceHead:
        """Frozen weights for features that are not standardised: (u - mean) / std is folded into P."""
        projection_RD = (self.projection.weight / std_D).contiguous()
        return SentenceHead(
            projection_RD=projection_RD,
            offset_R=-(projection_RD @ mean_D),
            hidden_weight_HF=self.hidden.weight.detach().clone(),
            hidden_bias_H=self.hidden.bias.detach().clone(),
            output_weight_H=self.output.weight.detach()[0].clone(),
            output_bias=self.output.bias.detach()[0].clone(),
            tau=self.tau,
        )


@dataclass(frozen=True)
class SentenceDiscriminator:
    """A frozen head of (2.1) with its calibration; see `Discriminator`."""

    head: SentenceHead
    mean: float
    std: float
    origin: Origin
    granularity: Granularity = "sentence"

    @property
    def kind(self) -> str:
        return "sentence"

    @cached_property
    def hash(self) -> str:
        return discriminator_hash(self)

    @torch.no_grad()
    def score(self, sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
        return sentence_scores(sentence_SD, cu_group, expert_ED, cu_expert, self.head)

    def tensors(self) -> dict[str, Tensor]:
        return self.head.tensors()

    def scalars(self) -> dict[str, float]:
        return {"tau": self.head.tau}

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, float],
        mean: float,
        std: float,
        origin: Origin,
        granularity: Granularity,
    ) -> SentenceDiscriminator:
        return cls(SentenceHead(**tensors, tau=scalars["tau"]), mean, std, origin, granularity)
