"""Training pairs: a positive and a negative sentence, each with the expert sentences it is scored against.

What must not tell them apart is kept equal (METHOD §2): both see sets of one, random size, and where the
positive is a sentence of the very response in the set, which is then left out of it, the negative's nearest
sentence is left out too.

Shape legend: S sentences of a pool, R expert responses, P prompts, Q contrasts, B batch, D hidden size,
J sentences of the largest set, E sentences of all sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Ragged:
    """Groups of consecutive rows."""

    start_G: Tensor
    count_G: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], offset: int = 0, device: torch.device | None = None) -> Ragged:
        """Groups that lie end to end, the first at row `offset`."""
        count_G = torch.tensor(counts, dtype=torch.int64, device=device)
        return cls(offset + count_G.cumsum(0) - count_G, count_G)

    def draw(self, group_B: Tensor, generator: torch.Generator) -> Tensor:
        """A random row of each group; meaningless where the group is empty."""
        return self.start_G[group_B] + random_below(self.count_G[group_B], generator)

    def rows(self, group: int) -> Tensor:
        """All rows of one group."""
        start = int(self.start_G[group])
        return torch.arange(start, start + int(self.count_G[group]), device=self.start_G.device)


@dataclass(frozen=True)
class SentencePool:
    """Sentences of a set of prompts: of their experts, their rollouts and of damaged expert responses.

    Attributes:
        state_SD: float32 features.
        length_S: int64, tokens.
        kind_S: int64, index of the corruption, -1 for a sentence that is not damaged.
        prompt_R: int64, prompt of each expert response.
        responses: prompt → its expert responses, the first being the reference.
        experts: expert response → its sentences.
        rollouts: prompt → sentences of its rollouts.
        damaged: expert response → damaged sentences made from it.
        rollout_length_N: int64, sentences of each rollout, in the order in which they lie.
    """

    state_SD: Tensor
    length_S: Tensor
    kind_S: Tensor
    prompt_R: Tensor
    responses: Ragged
    experts: Ragged
    rollouts: Ragged
    damaged: Ragged
    rollout_length_N: Tensor

    def contrasts(self, reference_only: bool = False) -> Tensor:
        """Pairs (source, set) of expert responses: sentences of the source can be scored against the set.

        Two responses of one prompt; where a prompt has one only, that one twice, to be scored sentence by
        sentence against its other sentences.

        Args:
            reference_only: only sets that are a prompt's first response, as in a run.

        Returns:
            int64 [Q, 2].
        """
        found = []
        counts = self.experts.count_G.tolist()
        for first, number in zip(self.responses.start_G.tolist(), self.responses.count_G.tolist(), strict=True):
            members = range(first, first + number)
            if number == 1 and counts[first] > 1:
                found.append((first, first))
            for chosen in members[:1] if reference_only else members:
                found += [(source, chosen) for source in members if source != chosen]
        return torch.tensor(found, dtype=torch.int64, device=self.state_SD.device).view(-1, 2)


@dataclass(frozen=True)
class PairBatch:
    """Rows of a pool: B positives, then their B negatives, and the set that each is scored against."""

    row_2B: Tensor
    expert_E: Tensor
    cu_expert: Tensor


class PairSampler:
    """Draws training pairs from a pool.

    Args:
        pool: at least two prompts.
        mix: weights of the negatives: rollouts, expert sentences of other prompts, damaged sentences. A
            prompt that has none of a kind gives another prompt's sentence instead.
        generator: on the pool's device.

    Raises:
        ValueError: no prompt gives a positive, or there is no other prompt.
    """

    def __init__(self, pool: SentencePool, mix: tuple[float, float, float], generator: torch.Generator) -> None:
        self.pool, self.generator = pool, generator
        self.contrast_Q2 = pool.contrasts()
        self.mix = torch.tensor(mix, dtype=torch.float32, device=pool.state_SD.device)
        if not len(self.contrast_Q2):
            raise ValueError("material: expected a second expert response or one of two sentences, got neither")
        if len(pool.responses.count_G) < 2:
            raise ValueError(f"material: expected at least 2 prompts, got {len(pool.responses.count_G)}")

    def sample(self, batch: int) -> PairBatch:
        """A random batch of pairs."""
        pool, generator = self.pool, self.generator
        device = pool.state_SD.device
        drawn_B = torch.randint(len(self.contrast_Q2), (batch,), generator=generator, device=device)
        source_B, set_B = self.contrast_Q2[drawn_B].unbind(1)
        positive_B = pool.experts.draw(source_B, generator)
        negative_B = self._negatives(source_B)
        leave_out_B = source_B == set_B
        available_B = pool.experts.count_G[set_B] - leave_out_B.long()
        # A run shows the whole set, so half of the pairs do.
        size_B = 1 + random_below(available_B, generator)
        whole_B = torch.rand(batch, generator=generator, device=device) < 0.5
        size_B = torch.where(whole_B, available_B, size_B)
        row_2B = torch.cat([positive_B, negative_B])
        expert_E, cu_expert = draw_sets(
            pool, row_2B, set_B.repeat(2), leave_out_B.repeat(2), size_B.repeat(2), generator
        )
        return PairBatch(row_2B, expert_E, cu_expert)

    def _negatives(self, source_B: Tensor) -> Tensor:
        pool, generator = self.pool, self.generator
        batch = len(source_B)
        prompt_B = pool.prompt_R[source_B]
        kind_B = torch.multinomial(self.mix, batch, replacement=True, generator=generator)
        prompts = len(pool.responses.count_G)
        step_B = 1 + torch.randint(prompts - 1, (batch,), generator=generator, device=source_B.device)
        row_B = pool.experts.draw(pool.responses.draw((prompt_B + step_B) % prompts, generator), generator)
        for kind, groups, group_B in ((0, pool.rollouts, prompt_B), (2, pool.damaged, source_B)):
            wanted_B = (kind_B == kind) & (groups.count_G[group_B] > 0)
            row_B = torch.where(wanted_B, groups.draw(group_B, generator), row_B)
        return row_B


def draw_sets(
    pool: SentencePool,
    row_B: Tensor,
    set_B: Tensor,
    leave_out_B: Tensor,
    size_B: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Expert sentences that each sentence is scored against.

    Args:
        row_B, set_B: sentences, and the expert responses that they are scored against.
        leave_out_B: bool, without the sentence of the set that is nearest to the sentence by cosine; which is
            the sentence itself where it belongs to the set.
        size_B: how many, drawn at random; None for all that are left.

    Returns:
        (rows of the pool [E], offsets [B + 1]).
    """
    count_B = pool.experts.count_G[set_B]
    place_J = torch.arange(int(count_B.max()), device=row_B.device)
    valid_BJ = place_J < count_B[:, None]
    row_BJ = torch.where(valid_BJ, pool.experts.start_G[set_B][:, None] + place_J, 0)
    if bool(leave_out_B.any()):
        valid_BJ = valid_BJ.clone()
        at = leave_out_B.nonzero()[:, 0]
        own = normalize(pool.state_SD[row_B[at]], dim=1)
        others = normalize(pool.state_SD[row_BJ[at]], dim=2)
        cosine = torch.einsum("bd,bjd->bj", own, others).masked_fill(~valid_BJ[at], -torch.inf)
        # Rounding must not let a sentence stay in a set that it belongs to.
        cosine = cosine.masked_fill(row_BJ[at] == row_B[at][:, None], torch.inf)
        valid_BJ[at, cosine.argmax(1)] = False
    if size_B is not None:
        key_BJ = torch.rand(valid_BJ.shape, generator=generator, device=row_B.device).masked_fill(~valid_BJ, 2.0)
        valid_BJ = key_BJ.argsort(1).argsort(1) < size_B[:, None]
    cu_expert = torch.zeros(len(row_B) + 1, dtype=torch.int64, device=row_B.device)
    cu_expert[1:] = valid_BJ.sum(1).cumsum(0)
    return row_BJ[valid_BJ], cu_expert


def random_below(limit_B: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform integers in [0, limit); 0 where the limit is 0."""
    uniform_B = torch.rand(limit_B.shape, generator=generator, device=limit_B.device, dtype=torch.float64)
    return (uniform_B * limit_B).long()
