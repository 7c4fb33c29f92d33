"""What a discriminator is fitted on, and its sentences as a pool of trunk states."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aapa.discriminator.base import Trunk
from aapa.discriminator.corruptions import CORRUPTIONS, Corruptor, Damaged
from aapa.discriminator.pairs import Ragged, SentencePool
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, spans


@dataclass(frozen=True)
class FitMaterial:
    """Token ids of one prompt.

    Attributes:
        prompt: its tokens.
        experts: one or more expert responses; the first is the reference that a run scores against.
        rollouts: responses of the initial policy or of checkpoints; may be empty.
    """

    prompt: list[int]
    experts: list[list[int]]
    rollouts: list[list[int]]


def check_material(material: Sequence[FitMaterial]) -> None:
    """Raises ValueError for a prompt without tokens, or without an expert response that has any."""
    for index, item in enumerate(material):
        if not item.prompt:
            raise ValueError(f"material.{index}.prompt: expected token ids, got none")
        if not item.experts or not all(item.experts):
            raise ValueError(f"material.{index}.experts: expected responses that are not empty, got {item.experts}")


def permuted(material: Sequence[FitMaterial], rng: random.Random) -> list[FitMaterial]:
    """The material with second experts and rollouts dealt anew, so that nothing tells them apart."""
    dealt = []
    for item in material:
        seconds, rollouts = item.experts[1:], [ids for ids in item.rollouts if ids]
        pooled = seconds + rollouts
        rng.shuffle(pooled)
        dealt.append(replace(item, experts=item.experts[:1] + pooled[: len(seconds)], rollouts=pooled[len(seconds) :]))
    return dealt


@dataclass(frozen=True)
class Tokenization:
    """How text becomes ids and ids become sentences.

    Attributes:
        encode, decode: text to ids without special tokens, and back.
        table, granularity: of the spans.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    table: SentenceTable
    granularity: Granularity


class _Responses:
    """Responses with their prompts and spans, in the order of a pool."""

    def __init__(self, ids: list[list[int]], prompt: list[int], tokenization: Tokenization) -> None:
        self.ids, self.prompt = ids, prompt
        self.cu_sents = spans(ids, tokenization.table, tokenization.granularity)
        self.counts = [len(cu) - 1 for cu in self.cu_sents]

    def states(self, trunk: Trunk, material: Sequence[FitMaterial]) -> Tensor:
        if not self.ids:
            return torch.zeros(0, trunk.hidden_size)
        return trunk.sentence_states([material[p].prompt for p in self.prompt], self.ids, self.cu_sents).float()


def build_pool(
    trunk: Trunk,
    material: Sequence[FitMaterial],
    tokenization: Tokenization,
    corruptions: int,
    rng: random.Random,
    reference_only: bool,
) -> SentencePool:
    """Trunk states of all sentences of the material and of damaged expert responses made from it.

    Args:
        corruptions: damaged responses per prompt.
        reference_only: damage only what is scored against first responses: the second experts, where there
            are some.
    """
    number = [len(item.experts) for item in material]
    prompt_R = [p for p, count in enumerate(number) for _ in range(count)]
    experts = _Responses([ids for item in material for ids in item.experts], prompt_R, tokenization)
    rollouts = _Responses(
        [ids for item in material for ids in item.rollouts],
        [p for p, item in enumerate(material) for _ in item.rollouts],
        tokenization,
    )
    corruptor = Corruptor(experts.ids, prompt_R, tokenization.table, tokenization.encode, tokenization.decode)
    first_R = Ragged.of(number).start_G.tolist()
    sources = [range(first + (reference_only and n > 1), first + n) for first, n in zip(first_R, number, strict=True)]
    made = damaged_responses(corruptor, sources, corruptions, rng)
    damaged = _Responses([d.ids for _, d in made], [prompt_R[source] for source, _ in made], tokenization)
    negatives = [d.negatives(cu) for (_, d), cu in zip(made, damaged.cu_sents, strict=True)]

    parts = (experts, rollouts, damaged)
    states = [part.states(trunk, material) for part in parts]
    device = states[0].device
    whole = sum(experts.counts) + sum(rollouts.counts)
    kinds = [
        CORRUPTIONS.index(d.kind) for (_, d), count in zip(made, damaged.counts, strict=True) for _ in range(count)
    ]
    keep_S = torch.tensor([True] * whole + [flag for flags in negatives for flag in flags], device=device)
    length_S = torch.cat([cu.diff().long() for part in parts for cu in part.cu_sents]).to(device)
    return SentencePool(
        state_SD=torch.cat([state.to(device) for state in states])[keep_S],
        length_S=length_S[keep_S],
        kind_S=torch.tensor([-1] * whole + kinds, device=device)[keep_S],
        prompt_R=torch.tensor(prompt_R, device=device),
        responses=Ragged.of(number, 0, device),
        experts=Ragged.of(experts.counts, 0, device),
        rollouts=Ragged.of(_sums(rollouts.prompt, rollouts.counts, len(material)), sum(experts.counts), device),
        damaged=Ragged.of(
            _sums([source for source, _ in made], [sum(flags) for flags in negatives], len(prompt_R)),
            whole,
            device,
        ),
        rollout_length_N=torch.tensor(rollouts.counts, dtype=torch.int64, device=device),
    )


def damaged_responses(
    corruptor: Corruptor, sources: Sequence[Sequence[int]], number: int, rng: random.Random
) -> list[tuple[int, Damaged]]:
    """Damaged versions, `number` per prompt, of random sources; the kinds take turns.

    Args:
        sources: expert responses per prompt, as indices of the corruptor.

    Returns:
        (source, damaged response), sorted by source.
    """
    made = []
    for turn, members in enumerate(members for members in sources for _ in range(number)):
        source = rng.choice(members)
        # Where a kind has nothing to damage, such as the order of a single word, the next takes its turn.
        first = turn % len(CORRUPTIONS)
        for kind in CORRUPTIONS[first:] + CORRUPTIONS[:first]:
            damaged = corruptor.corrupt(source, kind, rng)
            if damaged is not None:
                made.append((source, damaged))
                break
    return sorted(made, key=lambda pair: pair[0])


def _sums(owner: Sequence[int], counts: Sequence[int], size: int) -> list[int]:
    sums = [0] * size
    for o, count in zip(owner, counts, strict=True):
        sums[o] += count
    return sums
