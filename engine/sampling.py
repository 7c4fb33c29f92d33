"""The rollouts of a training step: groups of responses with their rewards, and dynamic sampling."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from aapa.engine.data import TokenizedExample
from aapa.engine.rollout import Rollout
from aapa.engine.run import Run, StageRun
from aapa.engine.scoring import Scores
from aapa.objectives.base import refills


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt.

    Attributes:
        place: of the draw within the step, over all replicas and rounds.
        index: of the example in the stage's data.
        rewards: NaN where the sample is masked.
    """

    place: int
    index: int
    rollouts: list[Rollout]
    rewards: list[float]

    @property
    def informative(self) -> bool:
        """Whether its rewards differ, so that some advantage is not 0."""
        return len({reward for reward in self.rewards if not math.isnan(reward)}) > 1


@dataclass
class RolloutBatch:
    """This replica's rollouts of a step with what was found out about them; all lists run in the same order.

    Attributes:
        groups: place of each rollout's prompt in the step; rollouts of a group lie side by side.
        rewards: NaN where the sample is masked.
        sampling: figures of dynamic sampling, equal on all ranks.
    """

    examples: list[TokenizedExample]
    rollouts: list[Rollout]
    groups: list[int]
    rewards: list[float]
    scores: Scores | None = None
    sampling: dict[str, float] = field(default_factory=dict)


def sample_batch(run: Run, stage: StageRun, step: int, drawn: list[int]) -> RolloutBatch:
    """Rollouts of this replica's share of the `drawn` examples; with dynamic sampling, of others as well (METHOD §4).

    Groups of equal rewards are then set aside, and groups of further prompts take their places: of all that were
    sampled, in the order of their draws, the first that are informative make the batch, and if they do not fill it
    after the last round, the first of those set aside. The number of replicas does not change which groups these are.
    """
    objective = stage.table.objective
    seen: Counter[int] = Counter()
    groups = _round(run, stage, step, drawn, 0, seen)
    if not refills(objective, step):
        return _batch(stage, groups)
    wanted, rounds = len(drawn), objective.dynamic_sampling_rounds
    found = _everywhere(run, groups)
    done = 1
    while done < rounds and sum(group.informative for group in found) < wanted:
        more = stage.refills.batch(step * (rounds - 1) + done - 1, wanted)
        found += _everywhere(run, _round(run, stage, step, more, done * wanted, seen))
        done += 1
    informative = [group for group in found if group.informative]
    aside = [group for group in found if not group.informative]
    chosen = sorted([*informative, *aside][:wanted], key=lambda group: group.place)
    batch = _batch(stage, run.mine(chosen))
    batch.sampling = {
        "sampling/rounds": done,
        "sampling/groups": len(found),
        "sampling/zero_variance": len(aside) / len(found),
    }
    return batch


def _round(run: Run, stage: StageRun, step: int, drawn: list[int], first_place: int, seen: Counter[int]) -> list[Group]:
    """Sample and reward this replica's share of some draws; `seen` counts the step's earlier draws of an example."""
    repeats = []
    for index in drawn:
        # An example drawn again must not repeat its samples.
        repeats.append(seen[index])
        seen[index] += 1
    mine = run.mine(list(range(len(drawn))))
    size = stage.table.objective.group_size
    indices = [drawn[place] for place in mine]
    examples = [stage.data[index] for index in indices for _ in range(size)]
    seeds = [
        stage.seed(run, step, stage.data[drawn[place]].example.id, repeats[place] * size + sample)
        for place in mine
        for sample in range(size)
    ]
    settings = run.recipe.rollout
    with stage.timed("rollout"):
        prompts = [example.prompt for example in examples]
        rollouts = run.generate(prompts, seeds, settings.max_new_tokens, settings.temperature)
    rewards, logged = _rewards(run, stage, step, examples, rollouts)
    stage.logged += logged
    return [
        Group(first_place + place, index, rollouts[k * size : (k + 1) * size], rewards[k * size : (k + 1) * size])
        for k, (place, index) in enumerate(zip(mine, indices, strict=True))
    ]


def _rewards(
    run: Run, stage: StageRun, step: int, examples: list[TokenizedExample], rollouts: list[Rollout]
) -> tuple[list[float], list[tuple[str, float]]]:
    """Reward of each rollout, and what the functions gave to `log_metric`."""
    if not stage.table.objective.needs_rewards:
        return [0.0] * len(rollouts), []
    with stage.timed("reward"):
        rewards: list[float] = []
        if run.parallel.is_leader:
            texts = [run.text(rollout.response) for rollout in rollouts]
            rewards = stage.rewards(
                [e.example for e in examples],
                texts,
                [r.finished for r in rollouts],
                [r.response for r in rollouts],
                step,
                stage.table.steps,
            )
        return run.parallel.from_leader((rewards, stage.rewards.take_logged()))


def _everywhere(run: Run, groups: list[Group]) -> list[Group]:
    """All replicas' groups in the order of their draws."""
    parts = run.parallel.gather_over_data(groups)
    return sorted((group for part in parts for group in part), key=lambda group: group.place)


def _batch(stage: StageRun, groups: list[Group]) -> RolloutBatch:
    size = stage.table.objective.group_size
    return RolloutBatch(
        examples=[stage.data[group.index] for group in groups for _ in range(size)],
        rollouts=[rollout for group in groups for rollout in group.rollouts],
        groups=[place for place in range(len(groups)) for _ in range(size)],
        rewards=[reward for group in groups for reward in group.rewards],
    )
