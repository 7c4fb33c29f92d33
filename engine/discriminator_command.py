"""`aapa discriminator fit | refresh`: fit one outside of a run, bring its expert cache up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aapa.discriminator.store import RECORD, load_card
from aapa.engine.anchor_span import first_anchor
from aapa.engine.console import announce
from aapa.engine.data import TokenizedExample, tokenized
from aapa.engine.discriminator_stage import (
    Drift,
    discriminator_directory,
    examine_again,
    fit_discriminator,
    open_scorer,
    policy_directory,
)
from aapa.engine.errors import UserError
from aapa.engine.hf_directory import SafetensorsWeights
from aapa.engine.policy import parallel as groups
from aapa.engine.progress import StageProgress
from aapa.engine.recipe import Recipe
from aapa.engine.run import Run
from aapa.engine.scoring import Scorer
from aapa.engine.setup import open_run


@dataclass(frozen=True)
class DriftLimits:
    """How far a discriminator may have moved before it must be fitted anew.

    Attributes:
        auc_drop: fall of the held-out AUC, of all negatives or of genuine rollouts.
        shift: of the mean score of held-out rollouts, in sigma_off, either way.
    """

    auc_drop: float = 0.03
    shift: float = 0.25


def fit(recipe: Recipe, run_directory: Path, output: Path | None, overwrite: bool = False) -> None:
    """Fit the recipe's discriminator on the policy that `fit_after` left in the run directory, and freeze it.

    Raises:
        UserError: the recipe has none to fit, the run has not come so far, or there is one that is to be kept.
    """
    if recipe.discriminator is None or recipe.discriminator.source is not None:
        got = "nothing" if recipe.discriminator is None else "a source"
        raise UserError(f"discriminator.fit_after: expected a discriminator to fit, got {got}")
    directory = output or run_directory / "discriminator"
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output: expected a directory, got the file {directory}")
    if (directory / RECORD).exists() and not overwrite:
        raise UserError(f"--output: expected a directory without a discriminator, got {directory}; give --overwrite")
    with _opened(recipe, run_directory) as run:
        _take_policy(run)
        fit_discriminator(run, directory)
        if run.parallel.is_main:
            announce(f"frozen in {directory}")


def refresh(recipe: Recipe, run_directory: Path, limits: DriftLimits) -> None:
    """Embed the training experts that are new or changed, and see whether the discriminator still fits them.

    The discriminator itself is frozen and stays as it is.

    Raises:
        UserError: its figures on the current experts are beyond the limits.
    """
    anchor = first_anchor(recipe)
    if anchor is None:
        raise UserError("stages: expected an anchored one, whose experts are cached, got none")
    if recipe.discriminator is not None and recipe.discriminator.source and recipe.model.source == "scratch":
        raise UserError(
            "model.source: expected the policy whose rollouts the discriminator was fitted on, got 'scratch'; a "
            "discriminator that was brought along is examined on what that policy writes"
        )
    with _opened(recipe, run_directory) as run:
        directory = discriminator_directory(run)
        scorer = open_scorer(run, anchor)
        examples = tokenized(run.task.examples("train"), run.tokenizer, run.policy.hf.max_position_embeddings, "train")
        computed = _embed(scorer, examples)
        if scorer.trunk is None:
            announce(f"experts: {len(examples)} fit the reward model, which reads them with each response")
        else:
            announce(f"experts: {computed} of {len(examples)} embedded, the others were in the cache")
        card = load_card(directory)
        if card is None:
            raise UserError(f"{directory}: expected a quality card to compare with, got none")
        _take_policy(run)
        drift, prompts, known = examine_again(run, scorer, card, examples)
    announce(
        f"drift on {prompts} of {known} prompts: AUC {drift.auc:+.3f}, against genuine rollouts {drift.rollouts:+.3f}; "
        f"mean score {drift.shift:+.2f} σ, spread ×{drift.spread:.2f}"
    )
    _check_drift(drift, limits)


def _check_drift(drift: Drift, limits: DriftLimits) -> None:
    # Comparisons that a figure that is lost, NaN, fails, too.
    problems = [
        f"{name}: expected a fall of at most {limits.auc_drop:g}, got {-value:.3f}"
        for name, value in (("auc", drift.auc), ("rollouts", drift.rollouts))
        if not value >= -limits.auc_drop
    ]
    if not abs(drift.shift) <= limits.shift:
        problems.append(f"shift: expected at most {limits.shift:g} σ, got {drift.shift:+.2f}")
    if problems:
        raise UserError("\n".join([*problems, "the experts have changed too much: fit the discriminator anew"]))


def _embed(scorer: Scorer, examples: Sequence[TokenizedExample]) -> int:
    with StageProgress("experts", len(examples), ()) as progress:
        return scorer.prepare(examples, lambda done, total: progress.update(done, {}))


class _opened:
    """A run as a context: the groups of a job of one process, and what the recipe names."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.directory = recipe, directory

    def __enter__(self) -> Run:
        torch.set_num_threads(self.recipe.parallel.threads)
        parallel = groups.start(timeout_seconds=self.recipe.parallel.timeout_seconds)
        try:
            return open_run(self.recipe, self.directory, parallel)
        except BaseException:
            groups.stop()  # nobody leaves a context that was not entered
            raise

    def __exit__(self, *_: object) -> None:
        groups.stop()


def _take_policy(run: Run) -> None:
    """Load the policy whose rollouts are the discriminator's negatives."""
    settings = run.recipe.discriminator
    assert settings is not None
    if settings.source is None:
        directory = policy_directory(run)
        if not directory.is_dir():
            raise UserError(
                f"discriminator.fit_after: expected {settings.fit_after!r} to have ended in {run.directory}, got no "
                f"{directory}; train the recipe until then"
            )
        run.policy.load_weights(SafetensorsWeights(directory), source=str(directory))
    run.sync_engine()
