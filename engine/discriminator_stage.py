"""The discriminator within a run: fitted between stages, frozen on disk, opened for the stages that it anchors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from aapa.discriminator.store import read_record
from aapa.engine.console import announce
from aapa.engine.data import Sampler, tokenize
from aapa.engine.discriminator_score import reading_facts
from aapa.engine.errors import UserError
from aapa.engine.hf_directory import SafetensorsWeights, read_config
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.progress import StageProgress
from aapa.engine.recipe import DiscriminatorTable
from aapa.engine.reward_model_stage import open_response_scorer, open_reward_model, reward_model_view
from aapa.engine.rewards import load_function
from aapa.engine.rollout import sample_seed
from aapa.engine.run import Run
from aapa.engine.score_plots import plot_scores
from aapa.engine.scoring import ResponseScorer, Scorer, SentenceScorer
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity, build_sentence_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    run.parallel.barrier()
    return discriminator.hash


def _fit_on_trunk(run: Run, settings: DiscriminatorTable) -> tuple[Frozen, QualityCard, Path, dict[str, Any]]:
    """(discriminator, figures, directory of its trunk, what else the record says of the trunk)."""
    directory = _trunk_directory(run, settings)
    trunk = open_trunk(run, directory, settings.layer, settings.logprob_features)
    material = _material(run, settings)
    with StageProgress("discriminator", settings.steps, ("loss", "accuracy"), rank=run.parallel.rank) as progress:

        def on_progress(step: int, _: int, figures: Mapping[str, float]) -> None:
            progress.update(step, figures)

        discriminator, card = fit_sentence_discriminator(
            trunk, material, _fit_settings(run, settings), *_tokenization(run), run.recipe.seed, on_progress
        )
    facts = {"layer": settings.layer, "logprob_features": settings.logprob_features}
    span = _fit_settings(run, settings).delimiters
    return discriminator, card, directory, facts | reading_facts(run.task, run.tokenizer) | {"span": span}


def _calibrate_reward_model(run: Run, settings: DiscriminatorTable) -> tuple[Frozen, QualityCard, Path, dict[str, Any]]:
    """(discriminator, figures, directory of the reward model, nothing)."""
    assert settings.reward_model is not None
    directory = Path(settings.reward_model)
    view = reward_model_view(run, open_reward_model(run, directory))
    material = _material(run, settings)
    discriminator, card = calibrate_reward_model(
        view, material, _fit_settings(run, settings), *_tokenization(run), run.recipe.seed
    )
    return discriminator, card, directory, {}


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


def examine_again(run: Run, scorer: Scorer, stored: QualityCard) -> Drift:
    """The figures of the run's discriminator on the current experts, beside those of its card."""
    settings = run.recipe.discriminator
    assert settings is not None
    discriminator = scorer.discriminator
    rest = (_material(run, settings), _fit_settings(run, settings), *_tokenization(run), run.recipe.seed)
    if isinstance(scorer, ResponseScorer):
        mean, std, card = examine_reward_model(scorer.discriminator, reward_model_view(run, scorer.model), *rest)
    else:
        assert isinstance(scorer, SentenceScorer)
        mean, std, card = examine(scorer.discriminator, scorer.trunk, *rest)
    return Drift(
        auc=card.auc - stored.auc,
        rollouts=card.rollouts - stored.rollouts,
        shift=(mean - discriminator.mean) / discriminator.std,
        spread=std / discriminator.std,
    )


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
    source = (directory / facts["directory"]).resolve()
    if isinstance(discriminator, PolarDiscriminator):
        # A reward model that was moved is found by the recipe's key; its hash must be the same.
        moved = run.recipe.discriminator and run.recipe.discriminator.reward_model
        return open_response_scorer(run, discriminator, Path(moved) if moved else source, table, delimiters)
    assert isinstance(discriminator, Discriminator), "a kind that is no reward model scores sentence states"
    trunk = open_trunk(run, source, facts["layer"], facts["logprob_features"])
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


def delimiter_ids(tokenizer: PreTrainedTokenizerFast, anchor: Anchor) -> tuple[int, int] | None:
    """Token ids of `anchor.span`; None where it is "all".

    Raises:
        UserError: a delimiter is not exactly one token.
    """
    if anchor.span == "all":
        return None
    found = []
    for text in anchor.span:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(f"anchor.span: expected delimiters of one token each, got {len(ids)} for {text!r}")
        found.append(ids[0])
    return found[0], found[1]


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


def _material(run: Run, settings: DiscriminatorTable) -> list[FitMaterial]:
    """Training prompts with their experts and fresh rollouts of the policy."""
    examples = run.task.examples("train")
    drawn = Sampler(len(examples), run.recipe.seed, "discriminator").batch(0, min(settings.prompts, len(examples)))
    data = tokenize([examples[i] for i in drawn], run.tokenizer, run.policy.hf.max_position_embeddings, "train")
    count = settings.rollouts_per_prompt
    seeds = [sample_seed(run.recipe.seed, "discriminator", e.example.id, i) for e in data for i in range(count)]
    rollouts = run.generate(
        [e.prompt for e in data for _ in range(count)],
        seeds,
        run.recipe.rollout.max_new_tokens,
        run.recipe.rollout.temperature,
    )
    return [
        FitMaterial(e.prompt, list(e.experts), [r.response for r in rollouts[i * count : (i + 1) * count]])
        for i, e in enumerate(data)
    ]


def _fit_settings(run: Run, table: DiscriminatorTable) -> FitSettings:
    """The recipe's numbers, and granularity and span of the stages that will use them."""
    anchors = [stage.objective.anchor for stage in run.recipe.stages]
    anchor = next((a for a in anchors if a is not None and a.active), None)
    usual: Granularity = "response" if table.kind == "polar" else "sentence"
    return FitSettings(
        # A reward model is only calibrated, as "cosine" is.
        kind="sentence" if table.kind == "sentence" else "cosine",
        granularity=usual if anchor is None else anchor.granularity,
        layer=table.layer,
        rank=table.rank,
        width=table.width,
        temperature=table.temperature,
        loss=table.loss,
        corruptions_per_prompt=table.corruptions_per_prompt,
        steps=table.steps,
        batch_size=table.batch_size,
        learning_rate=table.learning_rate,
        weight_decay=table.weight_decay,
        held_out=table.held_out,
        delimiters=None if anchor is None else delimiter_ids(run.tokenizer, anchor),
    )
