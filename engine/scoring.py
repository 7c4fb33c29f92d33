"""The discriminator at work: from rollouts to scores of their sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aapa.discriminator.base import Discriminator, Frozen
from aapa.discriminator.expert_cache import ExpertCache
from aapa.discriminator.polar import Comparison, PolarDiscriminator
from aapa.engine.data import TokenizedExample
from aapa.engine.errors import UserError
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.policy.parallel import Parallel
from aapa.engine.reward_model import FIELD, RewardModel, replica_scores
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, anchored_spans

# Examples that are looked through at a time.
AT_A_TIME = 1024


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
        return _token_mask(self.cu_sents[index], self.kept[index])


class Scorer(Protocol):
    """A frozen discriminator with what it reads; a collective of the replica, as are its methods."""

    @property
    def discriminator(self) -> Frozen: ...
    @property
    def trunk(self) -> FrozenModel | None:
        """The trunk; None for a discriminator that has none."""
        ...

    def prepare(
        self, examples: Sequence[TokenizedExample], on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Do once what can be done for examples before there are responses; the number of experts embedded."""
        ...

    def score(
        self,
        examples: list[TokenizedExample],
        responses: list[list[int]],
        granularity: Granularity | None = None,
        logprob_temperature: float | None = None,
    ) -> Scores:
        """Scores of responses to the prompts of `examples`, entry by entry, against the first experts."""
        ...


@dataclass
class SentenceScorer:
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

    def prepare(
        self, examples: Sequence[TokenizedExample], on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Embeds the first experts that are not in the cache; how many."""
        return self.experts.add({place: (e.prompt, e.experts[0]) for place, e in enumerate(examples)}, on_progress)

    def expert_states(self, examples: list[TokenizedExample]) -> tuple[Tensor, Tensor]:
        """Sentence states of the first experts, from the cache where they are known: (expert_ED, cu_expert)."""
        self.prepare(examples)
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


@dataclass
class ResponseScorer:
    """A frozen reward model that judges whole responses beside the first expert's (2.2).

    It lies on the leader of each replica, as the rollout engine does, which judges the replica's own responses and
    sends the scores to the other ranks.

    Attributes:
        model: on the leader only.
        text: the reading of a policy's tokens.
        dtype: of the scores.
    """

    discriminator: PolarDiscriminator
    model: RewardModel | None
    parallel: Parallel
    text: Callable[[list[int]], str]
    table: SentenceTable
    delimiters: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float32
    trunk: None = None

    def __post_init__(self) -> None:
        if self.model is not None:
            check_origin(self.discriminator, self.model)

    def prepare(
        self, examples: Sequence[TokenizedExample], on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Refuses examples that are too long for the reward model even beside an empty response; embeds nothing."""
        for first in range(0, len(examples), AT_A_TIME):
            part = examples[first : first + AT_A_TIME]
            if self.model is not None:
                texts = [(self.text(e.prompt), self.text(e.experts[0])) for e in part]
                self.model.encode([Comparison(prompt, expert, "") for prompt, expert in texts])
            if on_progress is not None:
                on_progress(first + len(part), len(examples))
        return 0

    def score(
        self,
        examples: list[TokenizedExample],
        responses: list[list[int]],
        granularity: Granularity | None = None,
        logprob_temperature: float | None = None,
    ) -> Scores:
        """As in `Scorer`. What lies between `delimiters` is cut out of both texts; each part that is left of a response
        has the score of the whole."""
        assert granularity in (None, "response"), "a reward model judges whole responses"
        assert logprob_temperature is None, "a reward model is no reference"
        prompts = [e.prompt for e in examples]
        cu_sents, kept = anchored_spans(prompts, responses, self.table, "response", self.delimiters)
        experts = [list(e.experts[0]) for e in examples]
        expert_spans = anchored_spans(prompts, experts, self.table, "response", self.delimiters)
        anchored = [
            bool(own.any()) and bool(reference.any()) for own, reference in zip(kept, expert_spans[1], strict=True)
        ]
        comparisons = [
            Comparison(
                self.text(prompts[i]),
                self.text(_kept_tokens(experts[i], expert_spans[0][i], expert_spans[1][i])),
                self.text(_kept_tokens(responses[i], cu_sents[i], kept[i])),
            )
            for i in range(len(examples))
            if anchored[i]
        ]
        found = iter(replica_scores(self.model, self.parallel, comparisons))
        values = [next(found) if judged else 0.0 for judged in anchored]
        score_S = torch.tensor([value for value, k in zip(values, kept, strict=True) for _ in k], dtype=self.dtype)
        return Scores(score_S, cu_sents, kept, anchored, self.discriminator.mean, self.discriminator.std)


def check_origin(discriminator: PolarDiscriminator, model: RewardModel) -> None:
    """Refuse a reward model, or a tokenizer of it, other than the one that was calibrated."""
    for what, calibrated, got in (
        ("weights and configuration", discriminator.origin.trunk, model.origin.trunk),
        ("tokenizer and template", discriminator.origin.table, model.origin.table),
    ):
        if calibrated != got:
            raise UserError(f"{FIELD}: expected the {what} {calibrated[:12]}… that were calibrated, got {got[:12]}…")


def _kept_tokens(tokens: list[int], cu_sents: Tensor, kept: Tensor) -> list[int]:
    mask = _token_mask(cu_sents, kept).tolist()
    return [token for token, chosen in zip(tokens, mask, strict=True) if chosen]


def _token_mask(cu_sents: Tensor, kept: Tensor) -> Tensor:
    return kept.repeat_interleave(cu_sents.diff().long())


def _runs(ids: list[int]) -> list[list[int]]:
    """Indices of runs of equal ids."""
    runs: list[list[int]] = []
    for index, value in enumerate(ids):
        if not runs or ids[runs[-1][-1]] != value:
            runs.append([])
        runs[-1].append(index)
    return runs
