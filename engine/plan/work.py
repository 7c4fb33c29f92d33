"""What a stage of a recipe has to do in a step, as the numbers that memory and time follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from aapa.engine.plan.layout import Layout
from aapa.engine.recipe import Recipe, StageTable
from aapa.engine.recipe.checks import anchored
from aapa.engine.rollout import chosen_engine

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StageWork:
    """One step of a stage, over all replicas.

    Attributes:
        sequences: rollouts and expert responses that are trained on.
        rollouts: of them, those that are sampled.
        prompt, response: tokens of a sequence; responses are taken as long as they may be.
        updates: optimizer steps that share a batch of rollouts.
        passes: forward and backward passes over every sequence.
        old_logprobs: whether the policy's log-probs are taken once more before the first update.
        trunk: whether the discriminator's trunk is held and reads the rollouts.
        reference: whether the KL reference is another frozen model, held beside it.
        reward_model_bytes: of a discriminator of kind "polar", on the first rank of each replica.
    """

    name: str
    sequences: int
    rollouts: int
    prompt: int
    response: int
    updates: int = 1
    passes: int = 1
    old_logprobs: bool = False
    trunk: bool = False
    reference: bool = False
    reward_model_bytes: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class Work:
    """A recipe as a plan sees it.

    Attributes:
        width: bytes of a parameter and an activation.
        micro_batch_tokens: most tokens of a micro-batch, over all context-parallel ranks.
        engine: what the recipe has rollouts sampled by.
        max_batch: sequences that are decoded at a time.
        copy_limit: bytes of an engine's own copy of the model that the recipe allows.
        prompts_per_step: by stage.
    """

    stages: Sequence[StageWork]
    width: int
    micro_batch_tokens: int
    engine: str
    max_batch: int
    copy_limit: float
    prompts_per_step: Sequence[int]

    def samples_with(self, layout: Layout) -> str:
        """The engine that samples rollouts: "transformers", with a copy of the model, or "megatron", without."""
        return chosen_engine(self.engine, layout)

    def decoded(self, stage: StageWork, layout: Layout) -> tuple[int, int]:
        """(rollouts that one rank decodes in a step, how many at a time)."""
        shares = layout.data * (1 if self.samples_with(layout) == "transformers" else layout.context)
        mine = math.ceil(stage.rollouts / shares)
        return mine, min(self.max_batch, mine)

    def micro_batches(self, stage: StageWork, data: int) -> int:
        """Of one optimizer step on one replica: whole sequences fill up to the token budget."""
        per_update = math.ceil(stage.sequences / data / stage.updates)
        fitting = max(1, self.micro_batch_tokens // stage.length)
        return math.ceil(per_update / fitting)

    def micro_batch_size(self, stage: StageWork, data: int) -> int:
        """Tokens of a full micro-batch."""
        per_update = math.ceil(stage.sequences / data / stage.updates)
        return min(max(1, self.micro_batch_tokens // stage.length), per_update) * stage.length


def work_of(recipe: Recipe, hf: PretrainedConfig, prompt_tokens: int) -> Work:
    """The recipe's steps; prompts are `prompt_tokens` long, or what the context leaves beside the response."""
    response = recipe.rollout.max_new_tokens
    prompt = max(1, min(prompt_tokens, int(hf.max_position_embeddings) - response))
    stages = [_stage(recipe, index, prompt, response) for index in range(len(recipe.stages))]
    return Work(
        stages,
        WIDTHS[recipe.model.dtype],
        recipe.parallel.micro_batch_tokens,
        recipe.rollout.engine,
        recipe.rollout.max_batch,
        recipe.rollout.memory_limit_gb * 1e9,
        [stage.prompts_per_step for stage in recipe.stages],
    )


def _stage(recipe: Recipe, index: int, prompt: int, response: int) -> StageWork:
    table: StageTable = recipe.stages[index]
    objective = table.objective
    experts = table.prompts_per_step if objective.uses_experts(0) else 0
    if experts and objective.expert_batch_size is not None:
        experts = objective.expert_batch_size
    # With a schedule that begins without rollouts, the step that has most decides.
    samples = any(objective.uses_rollouts(step) for step in (0, table.steps - 1))
    rollouts = table.prompts_per_step * objective.group_size if samples else 0
    if not rollouts and not experts:
        experts = table.prompts_per_step
    scored = anchored(table)
    disc = recipe.discriminator
    polar = disc is not None and disc.reward_model is not None
    trunk = scored and not polar
    shared = trunk and disc is not None and disc.trunk == "stage_start" and disc.fit_after == _before(recipe, index)
    updates = objective.updates_per_rollout
    passes = objective.epochs_per_rollout
    return StageWork(
        name=table.name,
        sequences=rollouts + experts,
        rollouts=rollouts,
        prompt=prompt,
        response=response,
        updates=updates,
        passes=passes,
        old_logprobs=bool(rollouts) and (updates * passes > 1 or objective.correction != "none"),
        trunk=trunk,
        reference=objective.needs_reference and not shared,
        reward_model_bytes=_weights_bytes(disc.reward_model) if scored and polar and disc is not None else 0,
    )


def _before(recipe: Recipe, index: int) -> str:
    return recipe.stages[index - 1].name if index else "start"


def _weights_bytes(directory: str | None) -> int:
    return sum(file.stat().st_size for file in Path(directory).glob("*.safetensors")) if directory else 0
