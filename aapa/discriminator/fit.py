"""Offline fitting of a discriminator; the trunk never moves (METHOD §2).

Shape legend: S sentences of a pool, D hidden size, B batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from aapa.discriminator.base import Discriminator, Origin, Trunk, table_hash
from aapa.discriminator.cosine import CosineDiscriminator
from aapa.discriminator.held_out import calibrate, quality_card
from aapa.discriminator.material import (
    FitMaterial,
    Tokenization,
    anchored_material,
    build_pool,
    check_material,
    permuted,
)
from aapa.discriminator.pairs import PairSampler, SentencePool
from aapa.discriminator.quality import QualityCard
from aapa.discriminator.sentence import SentenceDiscriminator, SentenceModel
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class FitSettings:
    """How a discriminator is fitted.

    Attributes:
        kind: "sentence" (2.1), or "cosine" (2.3), which is only calibrated.
        granularity: of the spans that are scored.
        layer: which hidden state of the trunk, for the record; the trunk knows.
        rank, width: R and the width of the MLP's hidden layer.
        temperature: of the soft alignment, tau / sqrt(R).
        loss: "bradley_terry" or "bce" (2.4).
        corruptions_per_prompt: damaged expert responses per prompt.
        steps, batch_size: optimizer steps, and pairs per step.
        learning_rate, weight_decay: of AdamW; the rate falls linearly to 0.
        dropout: on the hidden layer.
        negative_mix: weights of rollouts, expert sentences of other prompts, and damaged sentences.
        held_out: share of the prompts that calibrates and examines.
        delimiters: ids of an opening and a closing token; what lies between them is context only, as in a run with
            `anchor.span`: it is neither scored, compared with, nor damaged. None: all of a response counts.
        shuffle_labels: deal second experts and rollouts anew, to see that nothing else gives positives away.
    """

    kind: Literal["sentence", "cosine"] = "sentence"
    granularity: Granularity = "sentence"
    layer: int = -1
    rank: int = 128
    width: int = 64
    temperature: float = 1.0
    loss: Literal["bradley_terry", "bce"] = "bradley_terry"
    corruptions_per_prompt: int = 4
    steps: int = 800
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    dropout: float = 0.1
    negative_mix: tuple[float, float, float] = (0.45, 0.2, 0.35)
    held_out: float = 0.2
    shuffle_labels: bool = False
    delimiters: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        choices = {
            "kind": ("sentence", "cosine"),
            "granularity": ("sentence", "response"),
            "loss": ("bradley_terry", "bce"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("rank", "width", "temperature", "steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("corruptions_per_prompt", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        for name in ("held_out", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if min(self.negative_mix) < 0 or not sum(self.negative_mix) > 0:
            raise ValueError(f"negative_mix: expected weights that are not all 0, got {self.negative_mix}")


def fit_sentence_discriminator(
    trunk: Trunk,
    material: Sequence[FitMaterial],
    settings: FitSettings,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    table: SentenceTable,
    seed: int,
    on_progress: Progress | None = None,
) -> tuple[Discriminator, QualityCard]:
    """Fits P and the MLP of (2.1) with (2.4) on sentence pairs, then calibrates on held-out rollouts.

    Args:
        trunk: source of sentence states.
        material: prompts with experts and rollouts; some prompts are held out.
        encode, decode: text to ids without special tokens, and back.
        table: segmentation table of the same tokenizer.
        seed: of the split, the corruptions, the pairs and the weights.
        on_progress: called with (step, steps, {"loss", "accuracy"}) every 20 steps.

    Returns:
        (frozen discriminator, its figures on the held-out prompts).

    Raises:
        ValueError: material from which no positive can be made, fewer than two prompts on a side of the
            split, or held-out rollouts that cannot calibrate.
    """
    check_material(material)
    fitted_on, held_out = split_material(anchored_material(material, table, settings.delimiters), settings, seed)
    tokenization = Tokenization(encode, decode, table, settings.granularity, settings.delimiters)
    rng = random.Random(f"{seed}/fit")
    train = build_pool(trunk, fitted_on, tokenization, settings.corruptions_per_prompt, rng, reference_only=False)
    test = held_out_pool(trunk, held_out, tokenization, settings, seed)
    mean_D, std_D = feature_statistics(train)
    origin = Origin(trunk.hash, settings.layer, table_hash(table))
    discriminator: SentenceDiscriminator | CosineDiscriminator
    if settings.kind == "cosine":
        discriminator = CosineDiscriminator(0.0, 0.0, 1.0, origin, settings.granularity)
        constant, std = calibrate(discriminator, test)
        discriminator = replace(discriminator, constant=constant, std=std)
    else:
        model = train_model(standardised(train, mean_D, std_D), settings, seed, on_progress)
        discriminator = SentenceDiscriminator(model.head(mean_D, std_D), 0.0, 1.0, origin, settings.granularity)
        mean, std = calibrate(discriminator, test)
        discriminator = replace(discriminator, mean=mean, std=std)
    return discriminator, card_on(discriminator, test, len(fitted_on))


def examine(
    discriminator: Discriminator,
    trunk: Trunk,
    material: Sequence[FitMaterial],
    settings: FitSettings,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    table: SentenceTable,
    seed: int,
    split: bool = True,
) -> tuple[float, float, QualityCard]:
    """Calibration and figures that a fitted discriminator has on material, by the fit's own split of it.

    On the material that it was fitted on they are those it was frozen with, so a difference is the material's.

    Args:
        discriminator: frozen; its trunk is `trunk`. The others as in `fit_sentence_discriminator`.
        split: whether the material is split as a fit's; else all of it is held out.

    Returns:
        (mean and standard deviation of the held-out rollouts' scores, figures on the held-out prompts).
    """
    check_material(material)
    material = anchored_material(material, table, settings.delimiters)
    fitted_on, held_out = split_material(material, settings, seed) if split else ([], material)
    tokenization = Tokenization(encode, decode, table, settings.granularity, settings.delimiters)
    test = held_out_pool(trunk, held_out, tokenization, settings, seed)
    return *calibrate(discriminator, test), card_on(discriminator, test, len(fitted_on))


def split_material(
    material: Sequence[FitMaterial], settings: FitSettings, seed: int
) -> tuple[list[FitMaterial], list[FitMaterial]]:
    """(prompts to fit on, prompts that are held out); which ones depends on their number and the seed."""
    rng = random.Random(seed)
    shuffled = rng.sample(list(material), len(material))
    if settings.shuffle_labels:
        shuffled = permuted(shuffled, rng)
    held = round(settings.held_out * len(shuffled))
    if min(held, len(shuffled) - held) < 2:
        raise ValueError(
            f"material: expected 2 prompts or more on either side of the split, got {len(shuffled)} in all"
        )
    return shuffled[held:], shuffled[:held]


def held_out_pool(
    trunk: Trunk, held_out: list[FitMaterial], tokenization: Tokenization, settings: FitSettings, seed: int
) -> SentencePool:
    rng = random.Random(f"{seed}/held out")
    return build_pool(trunk, held_out, tokenization, settings.corruptions_per_prompt, rng, reference_only=True)


def card_on(discriminator: Discriminator, test: SentencePool, train_prompts: int) -> QualityCard:
    return quality_card(discriminator, test, standardised(test, *feature_statistics(test)), train_prompts)


def feature_statistics(pool: SentencePool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over the sentences that are not damaged."""
    state_SD = pool.state_SD[pool.kind_S < 0]
    # A feature that hardly varies is noise, which dividing by its deviation would blow up.
    std_D = state_SD.std(0)
    return state_SD.mean(0), std_D.clamp(min=1e-3 * float(std_D.mean()) + 1e-12)


def standardised(pool: SentencePool, mean_D: Tensor, std_D: Tensor) -> SentencePool:
    """The pool with standardised features."""
    return replace(pool, state_SD=(pool.state_SD - mean_D) / std_D)


def train_model(pool: SentencePool, settings: FitSettings, seed: int, on_progress: Progress | None) -> SentenceModel:
    """Fits the trainable form of (2.1) to pairs from a pool of standardised features."""
    device = pool.state_SD.device
    sampler = PairSampler(pool, settings.negative_mix, torch.Generator(device).manual_seed(seed))
    batch = settings.batch_size
    cu_group = torch.arange(2 * batch + 1, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = SentenceModel(
            pool.state_SD.shape[1], settings.rank, settings.width, settings.temperature, settings.dropout
        ).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
            pairs = sampler.sample(batch)
            score_2B = model(pool.state_SD[pairs.row_2B], cu_group, pool.state_SD[pairs.expert_E], pairs.cu_expert)
            positive_B, negative_B = score_2B.split(batch)
            loss = pair_loss(positive_B, negative_B, settings.loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_progress is not None and (step % 20 == 19 or step == settings.steps - 1):
                accuracy = (positive_B > negative_B).float().mean()
                on_progress(step + 1, settings.steps, {"loss": loss.item(), "accuracy": accuracy.item()})
    return model.eval()


def pair_loss(positive_B: Tensor, negative_B: Tensor, loss: str) -> Tensor:
    """(2.4): -log sigma(s+ - s-) per pair, or the binary cross-entropy of both scores."""
    if loss == "bradley_terry":
        return softplus(negative_B - positive_B).mean()
    return (softplus(-positive_B).mean() + softplus(negative_B).mean()) / 2
