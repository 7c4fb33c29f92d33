"""The discriminator at work: from rollouts to sentence scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aapa.discriminator.base import Discriminator
from aapa.discriminator.expert_cache import ExpertCache
from aapa.engine.data import TokenizedExample
from aapa.engine.policy.frozen import FrozenModel
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, anchored_spans


@dataclass(frozen=True)
class Scores:
    """Scores of packed responses.

    Attributes:
        score_S: float32, raw scores of all sentences in order.
        cu_sents: of each response, int32 [K_i + 1] offsets inside it.
        kept: of each response, bool [K_i], the sentences that the anchor speaks of.
        anchored: whether each response has such sentences and an expert to compare them with.
        mean, std: calibration (3.1) of the discriminator.
        logprobs: [R_i] log-probs of each response under the trunk, where they were asked for.
    """

    score_S: Tensor
    cu_sents: list[Tensor]
    kept: list[Tensor]
    anchored: list[bool]
    mean: float
    std: float
    logprobs: list[Tensor] | None = None

    def calibrated(self, clip: float) -> Tensor:
        """a_k of (3.1) for all sentences."""
        return ((self.score_S - self.mean) / self.std).clamp(-clip, clip)

    def judged(self) -> Tensor:
        """[S] bool, sentences that the anchor speaks of, of responses that are anchored."""
        return torch.cat([kept & anchored for kept, anchored in zip(self.kept, self.anchored, strict=True)])

    def within(self, index: int, value_S: Tensor) -> Tensor:
        """The values of one response's sentences."""
        first = sum(map(len, self.kept[:index]))
        return value_S[first : first + len(self.kept[index])]

    def token_mask(self, index: int) -> Tensor:
        """[R] bool, tokens of one response that the anchor speaks of."""
        return self.kept[index].repeat_interleave(self.cu_sents[index].diff().long())


@dataclass
class Scorer:
    """A frozen discriminator with its trunk, its segmentation table and the cached expert sentences."""

    discriminator: Discriminator
    trunk: FrozenModel
    table: SentenceTable
    experts: ExpertCache
    delimiters: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.discriminator.origin.trunk != self.trunk.hash:
            raise ValueError(
                f"discriminator.trunk: expected the trunk {self.discriminator.origin.trunk[:12]}… that the "
                f"discriminator was fitted on, got {self.trunk.hash[:12]}…"
            )

    def expert_states(self, examples: list[TokenizedExample]) -> tuple[Tensor, Tensor]:
        """Sentence states of the first experts, from the cache where they are known: (expert_ED, cu_expert)."""
        self.experts.add({place: (e.prompt, e.experts[0]) for place, e in enumerate(examples)})
        return self.experts.pack(range(len(examples)))

    def score(
        self,
        examples: list[TokenizedExample],
        responses: list[list[int]],
        granularity: Granularity | None = None,
        logprob_temperature: float | None = None,
    ) -> Scores:
        """Scores of responses to the prompts of `examples`, entry by entry, against the first expert's sentences.

        What lies between `delimiters` is left out of the expert's sentences, and is not anchored in responses. With
        `logprob_temperature` the same forward pass gives the responses' log-probs under the trunk.

        Consecutive entries of the same example form a group and share its expert sentences.
        """
        prompts = [e.prompt for e in examples]
        granularity = granularity or self.discriminator.granularity
        cu_sents, kept = anchored_spans(prompts, responses, self.table, granularity, self.delimiters)
        states_SD, logprobs = self.trunk.read(prompts, responses, cu_sents, logprob_temperature)
        groups = _runs([e.example.id for e in examples])
        sentences = [sum(len(cu_sents[i]) - 1 for i in group) for group in groups]
        cu_group = torch.tensor([0, *sentences]).cumsum(0).int()
        firsts = [examples[group[0]] for group in groups]
        expert_ED, cu_expert = self.expert_states(firsts)
        score_S = self.discriminator.score(states_SD, cu_group, expert_ED, cu_expert)
        has_expert = [int(count) > 0 for count in cu_expert.diff()]
        anchored = [
            has_expert[place] and bool(kept[index].any()) for place, group in enumerate(groups) for index in group
        ]
        return Scores(score_S, cu_sents, kept, anchored, self.discriminator.mean, self.discriminator.std, logprobs)


def _runs(ids: list[int]) -> list[list[int]]:
    """Indices of runs of equal ids."""
    runs: list[list[int]] = []
    for index, value in enumerate(ids):
        if not runs or ids[runs[-1][-1]] != value:
            runs.append([])
        runs[-1].append(index)
    return runs
