"""Kind "polar": a frozen reward model that reads the reference and the response (2.2).

The model itself is no part of this package: it comes as a function from comparisons to scores, and stays where it is on
disk. What is frozen here is its calibration, under the hash of the model, its tokenizer and the template.

Shape legend: S responses, E reference responses, G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from aapa.discriminator.base import Origin, discriminator_hash
from aapa.discriminator.fit import FitSettings, card_on, examine, held_out_pool, split_material
from aapa.discriminator.held_out import calibrate
from aapa.discriminator.material import FitMaterial, Tokenization, check_material, without_delimited
from aapa.discriminator.quality import QualityCard
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity

# The tokens after the reference, and after the response; the score is read at the last one.
REFERENCE_END, RESPONSE_END = "<|reward|>", "[UNUSED_TOKEN_130]"
TEMPLATE = "{prompt}{reference}" + REFERENCE_END + "{prompt}{response}" + RESPONSE_END


class Comparison(NamedTuple):
    """What a reward model judges: a response to a prompt beside a reference, as text."""

    prompt: str
    reference: str
    response: str

    def text(self) -> str:
        """The input of the model, `TEMPLATE`.

        A policy could write the separators itself and so end its response where it likes; they are taken out of what
        is filled in.
        """
        return (
            without_separators(self.prompt + self.reference)
            + REFERENCE_END
            + without_separators(self.prompt + self.response)
            + RESPONSE_END
        )


def without_separators(text: str) -> str:
    """The text less every separator, also those that arise as others are taken out."""
    while REFERENCE_END in text or RESPONSE_END in text:
        text = text.replace(REFERENCE_END, "").replace(RESPONSE_END, "")
    return text


@dataclass(frozen=True)
class RewardModelView:
    """A reward model, as far as this package looks.

    Attributes:
        origin: hash of its weights and configuration, -1, hash of its tokenizer and the template.
        scores: of comparisons, one after the other; the same for the same comparison.
        text: what it reads of a policy's tokens.
    """

    origin: Origin
    scores: Callable[[Sequence[Comparison]], list[float]]
    text: Callable[[list[int]], str]


@dataclass(frozen=True)
class PolarDiscriminator:
    """Calibration of a reward model's score s = f(prompt, reference, response) (2.2); see `Frozen`.

    Attributes:
        origin: of the reward model, see `RewardModelView`.

    Raises:
        ValueError: another granularity than "response".
    """

    mean: float
    std: float
    origin: Origin
    granularity: Granularity = "response"

    def __post_init__(self) -> None:
        if self.granularity != "response":
            raise ValueError(f"granularity: expected 'response' for kind 'polar', got {self.granularity!r}")

    @property
    def kind(self) -> str:
        return "polar"

    @cached_property
    def hash(self) -> str:
        return discriminator_hash(self)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def scalars(self) -> dict[str, float]:
        return {}

    @classmethod
    def restore(
        cls,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, float],
        mean: float,
        std: float,
        origin: Origin,
        granularity: Granularity,
    ) -> PolarDiscriminator:
        return cls(mean, std, origin, granularity)


def calibrate_reward_model(
    model: RewardModelView,
    material: Sequence[FitMaterial],
    settings: FitSettings,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    table: SentenceTable,
    seed: int,
) -> tuple[PolarDiscriminator, QualityCard]:
    """Freezes a reward model with mu_off and sigma_off of (3.1) of held-out rollouts, and examines it.

    Args:
        settings: only `granularity`, which must be "response", `held_out`, `corruptions_per_prompt`,
            `shuffle_labels` and `delimiters` count; delimited parts are cut out, as a run does.
        The others as in `aapa.discriminator.examine`.

    Returns:
        (frozen discriminator, its figures on the held-out prompts).

    Raises:
        ValueError: too few prompts, held-out rollouts that cannot calibrate, or another granularity.
    """
    check_material(material)
    material, settings = _cut(material, settings, table)
    fitted_on, held_out = split_material(material, settings, seed)
    judge = _judge(PolarDiscriminator(0.0, 1.0, model.origin, settings.granularity), model)
    test = held_out_pool(
        judge.readings, held_out, Tokenization(encode, decode, table, settings.granularity), settings, seed
    )
    mean, std = calibrate(judge, test)
    # Figures such as the saturation are of calibrated scores; no comparison is made twice.
    card = card_on(replace(judge, mean=mean, std=std), test, len(fitted_on))
    return PolarDiscriminator(mean, std, model.origin, settings.granularity), card


def examine_reward_model(
    discriminator: PolarDiscriminator,
    model: RewardModelView,
    material: Sequence[FitMaterial],
    settings: FitSettings,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    table: SentenceTable,
    seed: int,
    split: bool = True,
) -> tuple[float, float, QualityCard]:
    """`aapa.discriminator.examine` for a reward model; arguments as in `calibrate_reward_model`."""
    judge = _judge(discriminator, model)
    material, settings = _cut(material, settings, table)
    return examine(judge, judge.readings, material, settings, encode, decode, table, seed, split)


def _cut(
    material: Sequence[FitMaterial], settings: FitSettings, table: SentenceTable
) -> tuple[list[FitMaterial], FitSettings]:
    """The material as a reward model reads it, and settings under which all of it counts."""
    return without_delimited(material, table, settings.delimiters), replace(settings, delimiters=None)


def _judge(discriminator: PolarDiscriminator, model: RewardModelView) -> Judge:
    return Judge(
        discriminator.mean,
        discriminator.std,
        discriminator.origin,
        discriminator.granularity,
        readings=Readings(discriminator.origin.trunk, model.text),
        model=model,
    )


class Readings:
    """Responses by number, as the `Trunk` of a reward model, which has no states: a number stands in its place.

    Attributes:
        hidden_size: 1, the number.
        hash: of the reward model.
        read: prompt and response of each number, as text.
    """

    hidden_size = 1
    # float32 holds whole numbers up to here.
    MOST = 1 << 24

    def __init__(self, hash: str, text: Callable[[list[int]], str]) -> None:
        self.hash, self.text = hash, text
        self.read: list[tuple[str, str]] = []

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        """Number of each response that is not empty, float32 [S, 1]; as in `Trunk`."""
        first = len(self.read)
        for prompt, response, cu in zip(prompts, responses, cu_sents, strict=True):
            assert len(cu) <= 2, "a reward model judges whole responses"
            if len(cu) == 2:
                self.read.append((self.text(prompt), self.text(response)))
        assert len(self.read) <= self.MOST, "too many responses to number"
        return torch.arange(first, len(self.read), dtype=torch.float32).view(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Judge(PolarDiscriminator):
    """A reward model as a `Discriminator` over the numbers of `Readings`, for `examine`.

    Attributes:
        known: scores found so far.
    """

    readings: Readings
    model: RewardModelView
    known: dict[Comparison, float] = field(default_factory=dict)

    def score(self, sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
        """Raw scores of responses against the reference of their group, float64 [S]; as in `Discriminator`."""
        comparisons: list[Comparison | None] = []
        responses, references = (
            [self.readings.read[int(number)] for number in state_SD[:, 0].tolist()]
            for state_SD in (sentence_SD, expert_ED)
        )
        bounds, experts = cu_group.tolist(), cu_expert.tolist()
        for group, (first, last) in enumerate(itertools.pairwise(bounds)):
            found = references[experts[group] : experts[group + 1]]
            assert len(found) <= 1, "a reward model reads one reference"
            # An expert's answer to another prompt is judged as one to this prompt.
            comparisons += [Comparison(*found[0], response) if found else None for _, response in responses[first:last]]
        missing = [c for c in dict.fromkeys(comparisons) if c is not None and c not in self.known]
        if missing:
            self.known.update(zip(missing, self.model.scores(missing), strict=True))
        values = [0.0 if c is None else self.known[c] for c in comparisons]
        return torch.tensor(values, dtype=torch.float64, device=sentence_SD.device)
