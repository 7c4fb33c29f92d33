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
from aapa.sentences import Granularity, anchored_spans, outside


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
        delimiters: ids of an opening and a closing token; what lies between them is not anchored. None: all is.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    table: SentenceTable
    granularity: Granularity
    delimiters: tuple[int, int] | None = None


def anchored_material(
    material: Sequence[FitMaterial], table: SentenceTable, delimiters: tuple[int, int] | None
) -> list[FitMaterial]:
    """The material less responses of which nothing is anchored, and prompts whose first expert is such a one.

    Raises:
        ValueError: nothing is left.
    """
    if delimiters is None:
        return list(material)

    said = [(item.prompt, ids) for item in material for ids in item.experts + item.rollouts]
    _, kept = anchored_spans([p for p, _ in said], [ids for _, ids in said], table, delimiters=delimiters)
    anchored = iter([bool(flags.any()) for flags in kept])
    left = []
    for item in material:
        experts, rollouts = ([(ids, next(anchored)) for ids in part] for part in (item.experts, item.rollouts))
        if experts and experts[0][1]:
            left.append(
                replace(
                    item,
                    experts=[ids for ids, there in experts if there],
                    rollouts=[ids for ids, there in rollouts if there],
                )
            )
    if not left:
        raise ValueError("material: expected expert responses with a part that is anchored, got none")
    return left


def without_delimited(
    material: Sequence[FitMaterial], table: SentenceTable, delimiters: tuple[int, int] | None
) -> list[FitMaterial]:
    """`anchored_material`, with the delimited parts cut out of its responses."""
    material = anchored_material(material, table, delimiters)
    if delimiters is None:
        return material

    def cut(item: FitMaterial, ids: list[int]) -> list[int]:
        return [token for token, kept in zip(ids, outside(item.prompt, ids, *delimiters).tolist(), strict=True) if kept]

    return [
        replace(item, experts=[cut(item, ids) for ids in item.experts], rollouts=[cut(item, r) for r in item.rollouts])
        for item in material
    ]


class _Responses:
    """Responses with their prompts and spans, in the order of a pool.

    Attributes:
        kept: of each span of each response, whether it belongs to the pool.
        counts: spans of each response that do.
    """

    def __init__(
        self, ids: list[list[int]], owners: list[int], material: Sequence[FitMaterial], tokenization: Tokenization
    ) -> None:
        self.ids, self.owners = ids, owners
        self.prompts = [material[p].prompt for p in owners]
        self.cu_sents, self.kept = anchored_spans(
            self.prompts, ids, tokenization.table, tokenization.granularity, tokenization.delimiters
        )

    @property
    def counts(self) -> list[int]:
        return [int(kept.sum()) for kept in self.kept]

    def states(self, trunk: Trunk) -> Tensor:
        """Of the spans that are kept."""
        if not self.ids:
            return torch.zeros(0, trunk.hidden_size)
        state_SD = trunk.sentence_states(self.prompts, self.ids, self.cu_sents).float()
        return state_SD[torch.cat(self.kept).to(state_SD.device)]

    def lengths(self) -> Tensor:
        """Tokens of the spans that are kept, int64."""
        lengths = [cu.diff().long()[kept] for cu, kept in zip(self.cu_sents, self.kept, strict=True)]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *lengths])


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
    experts = _Responses([ids for item in material for ids in item.experts], prompt_R, material, tokenization)
    rollouts = _Responses(
        [ids for item in material for ids in item.rollouts],
        [p for p, item in enumerate(material) for _ in item.rollouts],
        material,
        tokenization,
    )
    corruptor = Corruptor(
        experts.ids,
        prompt_R,
        tokenization.table,
        tokenization.encode,
        tokenization.decode,
        experts.prompts,
        tokenization.delimiters,
    )
    first_R = Ragged.of(number).start_G.tolist()
    sources = [range(first + (reference_only and n > 1), first + n) for first, n in zip(first_R, number, strict=True)]
    made = damaged_responses(corruptor, sources, corruptions, rng)
    damaged = _Responses([d.ids for _, d in made], [prompt_R[source] for source, _ in made], material, tokenization)
    for (_, d), cu, kept in zip(made, damaged.cu_sents, damaged.kept, strict=True):
        kept &= torch.tensor(d.negatives(cu), dtype=torch.bool)

    parts = (experts, rollouts, damaged)
    states = [part.states(trunk) for part in parts]
    device = states[0].device
    whole = sum(experts.counts) + sum(rollouts.counts)
    kinds = [
        CORRUPTIONS.index(d.kind) for (_, d), count in zip(made, damaged.counts, strict=True) for _ in range(count)
    ]
    return SentencePool(
        state_SD=torch.cat([state.to(device) for state in states]),
        length_S=torch.cat([part.lengths() for part in parts]).to(device),
        kind_S=torch.tensor([-1] * whole + kinds, device=device),
        prompt_R=torch.tensor(prompt_R, device=device),
        responses=Ragged.of(number, 0, device),
        experts=Ragged.of(experts.counts, 0, device),
        rollouts=Ragged.of(_sums(rollouts.owners, rollouts.counts, len(material)), sum(experts.counts), device),
        damaged=Ragged.of(
            _sums([source for source, _ in made], damaged.counts, len(prompt_R)),
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
