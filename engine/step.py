"""One training step, read downhill: rollouts, rewards, scores, advantages, packing, updates, weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from aapa.batch import BatchCounts, Sequence
from aapa.engine.data import TokenizedExample
from aapa.engine.figures import FigureSums, step_figures
from aapa.engine.rollout import Rollout
from aapa.engine.run import Run, StageRun
from aapa.engine.scoring import Scores
from aapa.kernels import anchor_advantages
from aapa.objectives.base import Objective, scoring_runs
from aapa.packing import pack
from aapa.schedules import Schedule


@dataclass
class RolloutBatch:
    """This replica's rollouts of a step with what was found out about them; all lists run in the same order.

    Attributes:
        groups: place of each rollout's prompt in the step; rollouts of a group lie side by side.
        rewards: NaN where the sample is masked.
    """

    examples: list[TokenizedExample]
    rollouts: list[Rollout]
    groups: list[int]
    rewards: list[float]
    scores: Scores | None = None


def training_step(run: Run, stage: StageRun, step: int) -> dict[str, Any]:
    """Run step `step` of a stage on every rank; returns the figures of METHOD §6, equal on every rank."""
    began = perf_counter()
    stage.times.clear()
    objective: Objective = stage.table.objective
    drawn = stage.sampler.batch(step, stage.table.prompts_per_step)
    # An example may be drawn twice where an epoch ends: its second group must not repeat the first one's samples.
    repeats = run.mine([drawn[:place].count(index) for place, index in enumerate(drawn)])
    examples = [stage.data[i] for i in run.mine(drawn)]
    sequences = [_expert(example) for example in examples] if objective.uses_experts else []
    batch = None
    if objective.uses_rollouts(step):
        batch = roll_out(run, stage, step, examples, repeats)
        if scoring_runs(objective.anchor, step):
            with stage.timed("scoring"):
                batch.scores = _score(stage, objective, batch)
        sequences += advantages(batch, objective, step, run.recipe.rollout.temperature)
    updates = update(run, stage, step, sequences)
    with stage.timed("weights"):
        run.sync_engine()
    return step_figures(run, stage, step, batch, updates, perf_counter() - began)


def roll_out(
    run: Run, stage: StageRun, step: int, examples: list[TokenizedExample], repeats: list[int]
) -> RolloutBatch:
    """Sample a group per example and reward it; `repeats` counts earlier draws of the same example in this step."""
    size = stage.table.objective.group_size
    repeated = [example for example in examples for _ in range(size)]
    seeds = [
        stage.seed(run, step, example.example.id, repeat * size + i)
        for example, repeat in zip(examples, repeats, strict=True)
        for i in range(size)
    ]
    settings = run.recipe.rollout
    with stage.timed("rollout"):
        prompts = [example.prompt for example in repeated]
        rollouts = run.generate(prompts, seeds, settings.max_new_tokens, settings.temperature)
    rewards = [0.0] * len(rollouts)
    if stage.table.objective.needs_rewards:
        with stage.timed("reward"):
            if run.parallel.is_leader:
                texts = [run.text(rollout.response) for rollout in rollouts]
                rewards = stage.rewards([e.example for e in repeated], texts, [r.finished for r in rollouts])
            rewards = run.parallel.from_leader(rewards)
    return RolloutBatch(repeated, rollouts, [place // size for place in range(len(repeated))], rewards)


def _score(stage: StageRun, objective: Objective, batch: RolloutBatch) -> Scores:
    assert stage.scorer is not None and objective.anchor is not None
    responses = [rollout.response for rollout in batch.rollouts]
    return stage.scorer.score(batch.examples, responses, objective.anchor.granularity)


def advantages(batch: RolloutBatch, objective: Objective, step: int, temperature: float) -> list[Sequence]:
    """Rollouts as sequences with group advantages and centred anchor scores (METHOD 3.1, 3.2, §4)."""
    responses = [torch.tensor(rollout.response, dtype=torch.long) for rollout in batch.rollouts]
    lengths = torch.tensor([len(response) for response in responses])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    rewards = torch.tensor(batch.rewards, dtype=torch.float64)
    anchor, scores = objective.anchor, batch.scores
    mean, std = 0.0, 1.0
    anchored = torch.zeros(len(responses), dtype=torch.bool)
    score_S, cu_sents = torch.zeros(int((lengths > 0).sum())), cu_seqlens.unique_consecutive()
    if anchor is not None and scores is not None:
        anchored = torch.tensor(scores.anchored, dtype=torch.bool)
        score_S, cu_sents = scores.score_S, _packed_offsets(scores.cu_sents)
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
    )
    sequences = []
    parts = zip(
        batch.rollouts,
        responses,
        batch.rewards,
        anchored.tolist(),
        advantage_T.float().split(lengths.tolist()),
        anchor_advantage_T.float().split(lengths.tolist()),
        strict=True,
    )
    for rollout, response, reward, is_anchored, advantage, anchor_advantage in parts:
        sequences.append(
            Sequence(
                prompt=torch.tensor(rollout.prompt),
                response=response,
                role="rollout",
                temperature=temperature,
                mask=torch.zeros(len(response), dtype=torch.bool) if math.isnan(reward) else None,
                advantage=advantage,
                anchor_advantage=anchor_advantage,
                anchored=is_anchored,
            )
        )
    return sequences


def _mean_anchor(scores: Scores, clip: float) -> Tensor:
    """mean_k a_k of each response (METHOD §3, mode "reward"); 0 where it is not anchored."""
    calibrated_S = scores.calibrated(clip)
    means = []
    for index, is_anchored in enumerate(scores.anchored):
        mean = scores.within(index, calibrated_S).mean() if is_anchored else 0.0
        means.append(float(mean))
    return torch.tensor(means, dtype=torch.float64)


def _packed_offsets(cu_sents: list[Tensor]) -> Tensor:
    """Offsets inside each response as offsets of all responses laid end to end."""
    offsets, start = [0], 0
    for cu in cu_sents:
        offsets += [start + offset for offset in cu.tolist()[1:]]
        start = offsets[-1]
    return torch.tensor(offsets, dtype=torch.int32)


def _expert(example: TokenizedExample) -> Sequence:
    return Sequence(torch.tensor(example.prompt), torch.tensor(example.experts[0]), role="expert")


def update(run: Run, stage: StageRun, step: int, sequences: list[Sequence]) -> list[FigureSums]:
    """All optimizer steps on one batch of sequences."""
    objective: Objective = stage.table.objective
    budget = run.recipe.parallel.micro_batch_tokens
    learning_rate = learning_rate_at(stage, step)
    several = objective.updates_per_rollout * objective.epochs_per_rollout > 1
    with stage.timed("update"):
        if several:
            outputs = run.policy.logprobs(pack(sequences, budget))
            _attach_logprobs(sequences, [logprob for logprob, _ in outputs], budget, "old_logprob")
    if stage.reference is not None:
        with stage.timed("scoring"):
            _attach_logprobs(sequences, stage.reference.logprobs(pack(sequences, budget)), budget, "ref_logprob")
    results = []
    with stage.timed("update"):
        for _ in range(objective.epochs_per_rollout):
            for part in _minibatches(sequences, objective.updates_per_rollout):
                counts = BatchCounts.from_vector(run.parallel.sum_over_data(BatchCounts.of(part).vector()))
                batches = pack(part, budget, objective, counts, step)
                result = run.policy.train_step(batches, objective, learning_rate)
                results.append(FigureSums(result.sums, result.grad_norm, counts, learning_rate))
    return results


def _attach_logprobs(sequences: list[Sequence], outputs: list[Tensor], budget: int, name: str) -> None:
    for batch, logprob_T in zip(pack(sequences, budget), outputs, strict=True):
        for index, values in zip(batch.index_N, batch.responses(logprob_T.cpu()), strict=True):
            setattr(sequences[index], name, values)


def _minibatches(sequences: list[Sequence], parts: int) -> list[list[Sequence]]:
    """Consecutive parts of nearly equal count; groups may be cut, for advantages are made already."""
    size, rest = divmod(len(sequences), parts)
    bounds = [index * size + min(index, rest) for index in range(parts + 1)]
    return [sequences[a:b] for a, b in itertools.pairwise(bounds) if b > a]


def learning_rate_at(stage: StageRun, step: int) -> float:
    """Linear warm-up, then the stage's decay to `final_learning_rate_ratio` of the peak."""
    table = stage.table
    schedule = Schedule(
        kind=table.decay,
        start=table.learning_rate,
        end=table.learning_rate * table.final_learning_rate_ratio,
        steps=max(table.steps - table.warmup_steps, 1),
        warmup=table.warmup_steps,
    )
    return schedule.at(step)
