"""One training step, read downhill: rollouts, rewards, scores, advantages, packing, updates, weights."""

from __future__ import annotations

import itertools
import math
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from aapa.batch import BatchCounts, Sequence, TokenBatch
from aapa.engine.balance import balanced
from aapa.engine.data import TokenizedExample
from aapa.engine.figures import FigureSums, step_figures
from aapa.engine.rollout import sample_seed
from aapa.engine.run import Run, StageRun
from aapa.engine.sampling import RolloutBatch, sample_batch
from aapa.engine.scoring import Scores
from aapa.importance import importance_correction
from aapa.kernels import anchor_advantages
from aapa.objectives import Objective
from aapa.objectives.base import scoring_runs
from aapa.packing import pack
from aapa.schedules import Schedule
from aapa.shaping import overlong_penalty


def training_step(run: Run, stage: StageRun, step: int) -> dict[str, Any]:
    """Run step `step` of a stage on every rank; returns the figures of METHOD §6, equal on every rank."""
    began = perf_counter()
    stage.times.clear()
    stage.logged.clear()
    objective: Objective = stage.table.objective
    drawn = stage.sampler.batch(step, stage.table.prompts_per_step)
    sequences = _experts(run, stage, step, drawn) if objective.uses_experts(step) else []
    batch = None
    if objective.uses_rollouts(step):
        batch = sample_batch(run, stage, step, drawn)
        if scoring_runs(objective.anchor, step):
            with stage.timed("scoring"):
                batch.scores = _score(run, stage, objective, batch)
        settings = run.recipe.rollout
        sequences += advantages(batch, objective, step, settings.temperature, settings.max_new_tokens)
    updates = update(run, stage, step, sequences)
    with stage.timed("weights"):
        run.sync_engine()
    lengths = [len(sequence) for sequence in sequences]
    figures = step_figures(run, stage, step, batch, updates, lengths, perf_counter() - began)
    if "reward/failed" in figures:
        samples = stage.table.prompts_per_step * objective.group_size
        stage.failures.add(figures["reward/failed"], samples, stage.rewards.last_failure)
    return figures


def _experts(run: Run, stage: StageRun, step: int, drawn: list[int]) -> list[Sequence]:
    """This replica's expert responses: those of the step's prompts, or a batch of their own."""
    size, count = stage.table.objective.expert_batch_size, stage.table.prompts_per_step
    sampler = stage.sampler
    if size is not None:
        drawn, sampler, count = stage.experts.batch(step, size), stage.experts, size
    draws = run.mine(list(zip(drawn, sampler.epochs(step, count), strict=True)))
    chosen = run.recipe.data.draws_experts
    return [_expert(stage.data[index], (run.recipe.seed, epoch) if chosen else None) for index, epoch in draws]


def _score(run: Run, stage: StageRun, objective: Objective, batch: RolloutBatch) -> Scores:
    assert stage.scorer is not None and objective.anchor is not None
    responses = [rollout.response for rollout in batch.rollouts]
    # Where the KL reference is the trunk, one forward pass serves both.
    temperature = run.recipe.rollout.temperature if stage.shares_reference(run) else None
    return stage.scorer.score(batch.examples, responses, objective.anchor.granularity, temperature)


def advantages(
    batch: RolloutBatch, objective: Objective, step: int, temperature: float, max_length: int
) -> list[Sequence]:
    """Rollouts as sequences with group advantages and centred anchor scores (METHOD 3.1, 3.2, §4).

    `max_length` is the length limit that rollouts were sampled with.
    """
    lengths = torch.tensor([len(rollout.response) for rollout in batch.rollouts])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    rewards = _shaped_rewards(batch, objective, max_length)
    anchor, scores = objective.anchor, batch.scores
    mean, std = 0.0, 1.0
    anchored = torch.zeros(len(lengths), dtype=torch.bool)
    score_S, cu_sents = torch.zeros(int((lengths > 0).sum())), cu_seqlens.unique_consecutive()
    kept = None
    if anchor is not None and scores is not None:
        anchored = torch.tensor(scores.anchored, dtype=torch.bool)
        score_S, cu_sents, kept = scores.score_S, _packed_offsets(scores.cu_sents), torch.cat(scores.kept)
        mean, std = scores.mean, scores.std
        if anchor.mode == "reward":
            rewards = rewards + anchor.weight_at(step) * _mean_anchor(scores, anchor.clip)
            anchored = torch.zeros_like(anchored)
    advantage_T, anchor_advantage_T = anchor_advantages(
        score_S,
        rewards,
        cu_sents,
        cu_seqlens,
        torch.tensor(batch.groups),
        mean=mean,
        std=std,
        aggregation=objective.aggregation,
        scale=objective.scale,
        clip=anchor.clip if anchor else 3.0,
        credit=anchor.credit if anchor else "sentence",
        discount=anchor.discount if anchor else 1.0,
        anchored_N=anchored,
        anchored_S=kept,
    )
    signals = zip(
        advantage_T.float().split(lengths.tolist()), anchor_advantage_T.float().split(lengths.tolist()), strict=True
    )
    return [
        _sequence(batch, index, objective, temperature, bool(anchored[index]), *pair)
        for index, pair in enumerate(signals)
    ]


def _sequence(
    batch: RolloutBatch,
    index: int,
    objective: Objective,
    temperature: float,
    anchored: bool,
    advantage: Tensor,
    anchor_advantage: Tensor,
) -> Sequence:
    """A rollout with its signals; masked where it has no reward, or is truncated and the objective leaves these out."""
    rollout, size = batch.rollouts[index], len(advantage)
    masked = math.isnan(batch.rewards[index]) or (objective.mask_truncated and not rollout.finished)
    return Sequence(
        prompt=torch.tensor(rollout.prompt),
        response=torch.tensor(rollout.response, dtype=torch.long),
        role="rollout",
        temperature=temperature,
        mask=torch.zeros(size, dtype=torch.bool) if masked else None,
        advantage=advantage,
        anchor_advantage=anchor_advantage,
        ref_logprob=batch.scores.logprobs[index] if batch.scores is not None and batch.scores.logprobs else None,
        rollout_logprob=rollout.logprob,
        anchored=anchored,
        anchor_mask=batch.scores.token_mask(index) if anchored and batch.scores is not None else None,
    )


def _shaped_rewards(batch: RolloutBatch, objective: Objective, max_length: int) -> Tensor:
    """Rewards less the penalty of responses near the length limit, float64."""
    penalties = [
        overlong_penalty(len(rollout.response), max_length, objective.overlong_buffer, objective.overlong_penalty)
        for rollout in batch.rollouts
    ]
    return torch.tensor(batch.rewards, dtype=torch.float64) + torch.tensor(penalties, dtype=torch.float64)


def _mean_anchor(scores: Scores, clip: float) -> Tensor:
    """mean_k a_k of each response (METHOD §3, mode "reward"); 0 where it is not anchored."""
    calibrated_S = scores.calibrated(clip)
    means = []
    for index, is_anchored in enumerate(scores.anchored):
        mean = scores.within(index, calibrated_S)[scores.kept[index]].mean() if is_anchored else 0.0
        means.append(float(mean))
    return torch.tensor(means, dtype=torch.float64)


def _packed_offsets(cu_sents: list[Tensor]) -> Tensor:
    """Offsets inside each response as offsets of all responses laid end to end."""
    offsets, start = [0], 0
    for cu in cu_sents:
        offsets += [start + offset for offset in cu.tolist()[1:]]
        start = offsets[-1]
    return torch.tensor(offsets, dtype=torch.int32)


def _expert(example: TokenizedExample, draw: tuple[int, int] | None) -> Sequence:
    """The example's first expert, or one drawn for (seed, epoch)."""
    place = 0
    if draw is not None:
        place = sample_seed(draw[0], "expert", draw[1], example.example.id) % len(example.experts)
    return Sequence(torch.tensor(example.prompt), torch.tensor(example.experts[place]), role="expert")


def update(run: Run, stage: StageRun, step: int, sequences: list[Sequence]) -> list[FigureSums]:
    """All optimizer steps on one batch of sequences."""
    objective: Objective = stage.table.objective
    budget = run.recipe.parallel.micro_batch_tokens
    learning_rate = learning_rate_at(stage, step)
    _attach_known_logprobs(run, stage, [s for s in sequences if s.role == "rollout"])
    results = []
    with stage.timed("update"):
        for _ in range(objective.epochs_per_rollout):
            for share in _minibatches(sequences, objective.updates_per_rollout):
                part = balanced(share, run.parallel)
                mine = BatchCounts.of(part).vector().to(run.parallel.device)
                counts = BatchCounts.from_vector(run.parallel.sum_over_data(mine))
                batches = pack(part, budget, objective, counts, step)
                result = run.policy.train_step(batches, objective, learning_rate)
                results.append(FigureSums(result.sums, result.grad_norm, counts, learning_rate))
        run.policy.rest()
    return results


def _attach_known_logprobs(run: Run, stage: StageRun, rollouts: list[Sequence]) -> None:
    """Log-probs that stay as they are during the updates: the policy's own before them, and the reference's.

    The policy's are not needed where a single update follows, for then they are those of the update itself.
    """
    objective: Objective = stage.table.objective
    several = objective.updates_per_rollout * objective.epochs_per_rollout > 1
    corrected = objective.correction != "none"
    referred = stage.reference is not None and any(rollout.ref_logprob is None for rollout in rollouts)
    if not rollouts or not (several or corrected or referred):
        return
    batches = pack(rollouts, run.recipe.parallel.micro_batch_tokens)
    if several or corrected:
        with stage.timed("update"):
            _attach(rollouts, batches, [logprob for logprob, _ in run.policy.logprobs(batches)], "old_logprob")
    if corrected:
        for rollout in rollouts:
            assert rollout.old_logprob is not None and rollout.rollout_logprob is not None
            rollout.correction = importance_correction(
                rollout.old_logprob,
                rollout.rollout_logprob,
                rollout.mask,
                objective.correction,
                objective.correction_min,
                objective.correction_max,
            )
    if referred:
        assert stage.reference is not None
        with stage.timed("reference"):
            _attach(rollouts, batches, stage.reference.logprobs(batches), "ref_logprob")


def _attach(sequences: list[Sequence], batches: list[TokenBatch], outputs: list[Tensor], name: str) -> None:
    for batch, logprob_T in zip(batches, outputs, strict=True):
        for index, values in zip(batch.index_N, batch.responses(logprob_T.cpu()), strict=True):
            setattr(sequences[index], name, values)


def _minibatches(sequences: list[Sequence], parts: int) -> list[list[Sequence]]:
    """Consecutive parts of nearly equal count, of experts and of rollouts each; no group is cut."""
    made: list[list[Sequence]] = [[] for _ in range(parts)]
    for role in ("expert", "rollout"):
        chosen = [sequence for sequence in sequences if sequence.role == role]
        size, rest = divmod(len(chosen), parts)
        bounds = [index * size + min(index, rest) for index in range(parts + 1)]
        for part, (start, stop) in zip(made, itertools.pairwise(bounds), strict=True):
            part += chosen[start:stop]
    return [part for part in made if part]


def learning_rate_at(stage: StageRun, step: int) -> float:
    """Linear warm-up, whose first step is not 0, then the stage's decay to `final_learning_rate_ratio` of the peak."""
    table = stage.table
    if step < table.warmup_steps:
        return table.learning_rate * (step + 1) / (table.warmup_steps + 1)
    schedule = Schedule(
        kind=table.decay,
        start=table.learning_rate,
        end=table.learning_rate * table.final_learning_rate_ratio,
        steps=max(table.steps - table.warmup_steps, 1),
    )
    return schedule.at(step - table.warmup_steps)
