"""Kind "polar" within a run: the reward model is calibrated on rollouts, and opened for the stages that it anchors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aapa.discriminator import Comparison, PolarDiscriminator, RewardModelView
from aapa.engine.progress import StageProgress
from aapa.engine.reward_model import RewardModel, replica_scores
from aapa.engine.run import Run
from aapa.engine.scoring import ResponseScorer
from aapa.kernels import SentenceTable


def open_reward_model(run: Run, directory: Path) -> RewardModel | None:
    """The reward model in a directory, on the leader of each replica; None on the other ranks."""
    if not run.parallel.is_leader:
        return None
    return RewardModel(directory, run.parallel.device, run.policy.dtype, run.recipe.parallel.micro_batch_tokens)


def open_response_scorer(
    run: Run,
    discriminator: PolarDiscriminator,
    directory: Path,
    table: SentenceTable,
    delimiters: tuple[int, int] | None,
) -> ResponseScorer:
    """A calibrated reward model at work.

    Raises:
        UserError: the directory holds none, or another than was calibrated.
    """
    model = open_reward_model(run, directory)
    return ResponseScorer(discriminator, model, run.parallel, run.text, table, delimiters, run.policy.dtype)


def reward_model_view(run: Run, model: RewardModel | None) -> RewardModelView:
    """The leader's reward model for calibration and examination, on every rank of the replica."""

    def scores(comparisons: Sequence[Comparison]) -> list[float]:
        with StageProgress("reward model", len(comparisons), (), rank=run.parallel.rank) as progress:
            return replica_scores(model, run.parallel, comparisons, lambda done, _: progress.update(done, {}))

    origin = run.parallel.from_leader(None if model is None else model.origin)
    return RewardModelView(origin, scores, run.text)
