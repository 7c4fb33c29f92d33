"""The discriminator within a run: fitted between stages, frozen on disk, opened for the stages that it anchors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aapa.anchor import Anchor
from aapa.discriminator import (
    Discriminator,
    ExpertCache,
    FitMaterial,
    FitSettings,
    Frozen,
    Kind,
    PolarDiscriminator,
    QualityCard,
    calibrate_reward_model,
    examine,
    examine_reward_model,
    fit_sentence_discriminator,
    freeze,
    load,
)
from aapa.discriminator.base import table_hash
from aapa.discriminator.store import read_record
from aapa.engine.anchor_span import delimiter_ids
from aapa.engine.console import announce
from aapa.engine.data import TokenizedExample
from aapa.engine.discriminator_material import draw_material, fit_settings, held_out_again, held_out_names
from aapa.engine.discriminator_score import reading_facts
from aapa.engine.errors import UserError
from aapa.engine.hf_directory import SafetensorsWeights, read_config
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.progress import StageProgress
from aapa.engine.recipe import DiscriminatorTable
from aapa.engine.reward_model_stage import open_response_scorer, open_reward_model, reward_model_view
from aapa.engine.rewards import load_function
from aapa.engine.run import Run
from aapa.engine.score_plots import plot_scores
from aapa.engine.scoring import ResponseScorer, Scorer, SentenceScorer
from aapa.kernels import SentenceTable
from aapa.sentences import build_sentence_table

START = "start"


def fit_discriminator(run: Run, directory: Path | None = None) -> str:
    """Fit on the current policy's rollouts to training prompts, freeze into a directory; the discriminator's hash.

    Args:
        directory: the run's `discriminator/` by default.
    """
    settings = run.recipe.discriminator
    assert settings is not None and settings.fit_after is not None
    directory = run.directory / "discriminator" if directory is None else directory
    if settings.kind == "polar":
        discriminator, card, read, facts = _calibrate_reward_model(run, settings)
    else:
        discriminator, card, read, facts = _fit_on_trunk(run, settings)
    if run.parallel.is_main:
        directory.mkdir(parents=True, exist_ok=True)
        where = os.path.relpath(read.resolve(), directory.resolve())
        freeze(discriminator, directory, trunk={"directory": where, **facts}, card=card)
        plot_scores(card.histograms, directory / "scores.png")
        announce(card_line(card))
        if min(card.auc, card.rollouts) < 0.5:
            announce("warning: it scores experts below what it should tell from them; an anchor on it would misguide")
    run.parallel.barrier()
    return discriminator.hash


def _fit_on_trunk(run: Run, settings: DiscriminatorTable) -> tuple[Frozen, QualityCard, Path, dict[str, Any]]:
    """(discriminator, figures, directory of its trunk, what the record says of the trunk and of the fit)."""
    directory = _trunk_directory(run, settings)
    trunk = open_trunk(run, directory, settings.layer, settings.logprob_features)
    data, material = draw_material(run, settings)
    how = fit_settings(run, settings)
    with StageProgress("discriminator", settings.steps, ("loss", "accuracy"), rank=run.parallel.rank) as progress:

        def on_progress(step: int, _: int, figures: Mapping[str, float]) -> None:
            progress.update(step, figures)

        discriminator, card = fit_sentence_discriminator(
            trunk, material, how, *_tokenization(run), run.recipe.seed, on_progress
        )
    facts = {"layer": settings.layer, "logprob_features": settings.logprob_features}
    facts |= reading_facts(run.task, run.tokenizer) | {"span": how.delimiters}
    return discriminator, card, directory, facts | {"held_out": _held_out(run, how, data, material)}


def _calibrate_reward_model(run: Run, settings: DiscriminatorTable) -> tuple[Frozen, QualityCard, Path, dict[str, Any]]:
    """(discriminator, figures, directory of the reward model, what the record says of the fit)."""
    assert settings.reward_model is not None
    directory = Path(settings.reward_model)
    view = reward_model_view(run, open_reward_model(run, directory))
    data, material = draw_material(run, settings)
    how = fit_settings(run, settings)
    discriminator, card = calibrate_reward_model(view, material, how, *_tokenization(run), run.recipe.seed)
    return discriminator, card, directory, {"span": how.delimiters, "held_out": _held_out(run, how, data, material)}


def _held_out(
    run: Run, how: FitSettings, data: list[TokenizedExample], material: list[FitMaterial]
) -> list[tuple[str, int]]:
    return held_out_names(run, how, sentence_table(run), data, material)


@dataclass(frozen=True)
class Drift:
    """How far a frozen discriminator has moved on changed experts.

    Attributes:
        auc, rollouts: held-out AUC now, less that of its card: of all negatives, and of genuine rollouts.
        shift: mean score of held-out rollouts now, less mu_off, in sigma_off.
        spread: their standard deviation now, over sigma_off.
    """

    auc: float
    rollouts: float
    shift: float
    spread: float


def examine_again(
    run: Run, scorer: Scorer, stored: QualityCard, examples: Sequence[TokenizedExample]
) -> tuple[Drift, int, int]:
    """The figures of the run's discriminator on the current experts, beside those of its card.

    Prompts and rollouts are those that the fit held out, as far as they are still among the examples, so that what
    differs is the experts'.

    Returns:
        (drift, prompts looked at, prompts that the fit held out).

    Raises:
        UserError: fewer than two of the prompts are left.
    """
    settings = run.recipe.discriminator
    assert settings is not None
    discriminator = scorer.discriminator
    held_out = read_record(discriminator_directory(run))["trunk"].get("held_out")
    if held_out is None:  # a kind of one's own, frozen by its own program
        _, material = draw_material(run, settings)
        known = len(material)
    else:
        material = held_out_again(run, settings, held_out, examples)
        known = len(held_out)
    if len(material) < 2:
        raise UserError(f"data: expected 2 or more of the {known} prompts that the fit held out, got {len(material)}")
    rest = (material, fit_settings(run, settings), *_tokenization(run), run.recipe.seed)
    split = held_out is None
    if isinstance(scorer, ResponseScorer):
        mean, std, card = examine_reward_model(
            scorer.discriminator, reward_model_view(run, scorer.model), *rest, split=split
        )
    else:
        assert isinstance(scorer, SentenceScorer)
        mean, std, card = examine(scorer.discriminator, scorer.trunk, *rest, split=split)
    drift = Drift(
        auc=change(card.auc, stored.auc),
        rollouts=change(card.rollouts, stored.rollouts),
        shift=(mean - discriminator.mean) / discriminator.std,
        spread=std / discriminator.std,
    )
    return drift, len(material), known


def change(now: float, before: float) -> float:
    """How far a figure moved: one that was never known has not, one that is lost has by NaN."""
    return 0.0 if math.isnan(before) else now - before


def _tokenization(run: Run) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str], SentenceTable]:
    """Text to ids, ids to text, and the table of sentence ends."""

    def encode(text: str) -> list[int]:
        return run.tokenizer.encode(text, add_special_tokens=False)

    return encode, run.tokenizer.decode, sentence_table(run)


def card_line(card: QualityCard) -> str:
    """The figures one looks at, in a line."""
    return (
        f"discriminator: held-out AUC {card.auc:.2f}; second expert against rollouts {card.rollouts:.2f} by "
        f"sentence, {card.rollouts_by_response:.2f} by response, "
        f"other prompts {card.other_prompts:.2f}, saturated {card.saturation:.1%}"
    )


def open_scorer(run: Run, anchor: Anchor) -> Scorer:
    """The run's frozen discriminator at work.

    Raises:
        UserError: there is none, it was fitted for another granularity, its trunk is gone, or a delimiter of the span
            is no token.
        ValueError: a file of it was changed.
    """
    directory = discriminator_directory(run)
    if not directory.is_dir():
        raise UserError(f"discriminator.source: expected a directory, got {str(directory)!r}")
    discriminator = load(directory, kinds=own_kinds(run))
    if discriminator.granularity != anchor.granularity:
        raise UserError(
            f"anchor.granularity: expected {discriminator.granularity!r} as the discriminator was fitted, "
            f"got {anchor.granularity!r}"
        )
    delimiters = delimiter_ids(run.tokenizer, anchor)
    table = sentence_table(run)
    facts = read_record(directory)["trunk"]
    if "span" in facts and facts["span"] != (None if delimiters is None else list(delimiters)):
        fitted = "'all'" if facts["span"] is None else run.tokenizer.convert_ids_to_tokens(facts["span"])
        raise UserError(f"anchor.span: expected {fitted} as the discriminator was fitted, got {anchor.span!r}")
    source = (directory / facts["directory"]).resolve()
    if isinstance(discriminator, PolarDiscriminator):
        # A reward model that was moved is found by the recipe's key; its hash must be the same.
        moved = run.recipe.discriminator and run.recipe.discriminator.reward_model
        return open_response_scorer(run, discriminator, Path(moved) if moved else source, table, delimiters)
    assert isinstance(discriminator, Discriminator), "a kind that is no reward model scores sentence states"
    trunk = open_trunk(run, source, facts["layer"], facts["logprob_features"])
    if discriminator.origin.trunk != trunk.hash:
        raise UserError(f"discriminator: expected the trunk that it was fitted on in {source}, got other weights")
    if discriminator.origin.table != table_hash(table):
        raise UserError(
            "discriminator: expected the tokenizer that it was fitted with, got another; a task's tokenizer() must not "
            "change with its rows"
        )
    settings = run.recipe.discriminator
    assert settings is not None
    cache = ExpertCache(
        trunk,
        discriminator.origin,
        table,
        anchor.granularity,
        run.directory / "experts",
        delimiters,
        dtype=settings.cache_dtype,
        verify=settings.cache_verify,
    )
    return SentenceScorer(discriminator, trunk, table, cache, delimiters)


def own_kinds(run: Run) -> dict[str, Kind]:
    """The user's own class of discriminators, where the recipe names one, by its dotted path.

    Raises:
        UserError: there is no such class, or it restores nothing.
    """
    settings = run.recipe.discriminator
    if settings is None or ":" not in settings.kind:
        return {}
    chosen = load_function(settings.kind, "discriminator.kind")
    if not hasattr(chosen, "restore"):
        raise UserError(f"discriminator.kind: expected a class with `restore`, got {settings.kind!r}")
    return {settings.kind: cast(Kind, chosen)}


def discriminator_directory(run: Run) -> Path:
    """Where the run's frozen discriminator lies."""
    settings = run.recipe.discriminator
    if settings is not None and settings.source is not None:
        return Path(settings.source)
    return run.directory / "discriminator"


def check_unchanged(run: Run, expected_hash: str) -> None:
    """Refuse a discriminator on disk that is not the one with `expected_hash` any more."""
    load(discriminator_directory(run), expected_hash, own_kinds(run))


def sentence_table(run: Run) -> SentenceTable:
    return build_sentence_table(run.tokenizer, vocab_size=run.policy.hf.vocab_size)


def check_layer(layer: int, layers: int, pipeline: int) -> None:
    """Refuse a layer that a model of so many does not have, or one at which pipeline stages cannot be equally long."""
    if not -layers <= layer <= layers or layer == 0:
        raise UserError(f"discriminator.layer: expected -{layers} … -1 or 1 … {layers}, got {layer}")
    depth = layer if layer > 0 else layers + 1 + layer
    if depth % pipeline:
        raise UserError(
            f"discriminator.layer: expected as many layers as parallel.pipeline = {pipeline} divides, got {depth}"
        )


def open_trunk(run: Run, directory: Path, layer: int, logprob_features: bool = False) -> FrozenModel:
    """The frozen model in a Hugging Face directory; its layer counts from the end if negative."""
    config = read_config(directory, "discriminator.trunk")
    layers = int(config.num_hidden_layers)
    check_layer(layer, layers, run.parallel.pipeline)
    return FrozenModel(
        config,
        SafetensorsWeights(directory, "discriminator.trunk", config),
        run.parallel,
        run.policy.dtype,
        run.recipe.parallel.micro_batch_tokens,
        layer if layer >= -1 else layers + 1 + layer,
        logprob_features,
    )


def _trunk_directory(run: Run, settings: DiscriminatorTable) -> Path:
    """ "base" is the policy before the first stage on examples, "stage_start" the one that `fit_after` left."""
    stages = run.recipe.stages
    if settings.trunk == "stage_start":
        return policy_directory(run)
    if settings.trunk != "base":
        return Path(settings.trunk)
    on_examples = [i for i, stage in enumerate(stages) if stage.data == "examples"]
    before = [stage.name for stage in stages[: on_examples[0] if on_examples else len(stages)]]
    if before:
        return run.directory / "stages" / before[-1]
    return run.initial_directory


def policy_directory(run: Run) -> Path:
    """The policy that the discriminator is fitted on: what `fit_after` left, or the one that the run begins with."""
    settings = run.recipe.discriminator
    assert settings is not None
    if settings.fit_after == START:
        return run.initial_directory
    return run.directory / "stages" / str(settings.fit_after)
