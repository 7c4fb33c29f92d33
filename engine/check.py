"""`aapa train --check`: everything that a run would refuse, found without training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from aapa.engine.errors import UserError
from aapa.engine.hub import is_hub_name
from aapa.engine.recipe import Recipe
from aapa.engine.recipe.checks import checkpoint_problems
from aapa.engine.recipe.problems import raise_problems
from aapa.engine.reward_process import Bounds
from aapa.engine.rewards import RewardPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aapa.engine.data_files import FileTask
    from aapa.engine.examples import Example

ANSWER = "A response that the check made up."


def recipe_notes(recipe: Recipe) -> list[str]:
    """What a recipe asks for that will have no effect, a line each; a run says it, too."""
    from aapa.objectives.base import refills

    return [
        f"stages.{stage.name}.objective.dynamic_sampling: 'auto' never acts, for the anchor has a term of its own at "
        "every step; groups of equal rewards are kept"
        for stage in recipe.stages
        if stage.objective.dynamic_sampling == "auto"
        and not any(refills(stage.objective, step) for step in range(stage.steps))
    ]


def check_run(recipe: Recipe) -> list[str]:
    """Look at the model directory, every row, and the reward functions, each called on one row.

    Nothing is written.

    Returns:
        What was found, in lines.

    Raises:
        UserError: what a run would refuse.
    """
    from aapa.engine.data_files import uses_files

    if uses_files(recipe):
        directory, lines = _model(recipe)
        _check_anchors(recipe, directory)
        task = _file_task(recipe, directory)
        lines.append(_rows_line(task))
        columns, example = task.columns, task.examples("train")[0]
        return lines + _check_rewards(recipe, example, columns)
    if recipe.model.source == "scratch":
        lines = []
        _check_anchors(recipe, None)
    else:
        directory, lines = _model(recipe)
        _check_anchors(recipe, directory)
    if all(reward.function.startswith("aapa.") for stage in recipe.stages for reward in stage.rewards):
        return lines  # the package's own tasks and rewards; what else there is was looked at with the recipe
    from aapa.engine.tasks import load_task

    example = load_task(recipe.data.task, recipe.data.options).examples("train")[0]
    return lines + _check_rewards(recipe, example, list(example.columns))


def _model(recipe: Recipe) -> tuple[Path, list[str]]:
    """The model's directory, and what is to be said of it; weights on the hub are not fetched to be looked at."""
    from aapa.engine.hf_directory import read_config
    from aapa.engine.hf_weights import SafetensorsWeights
    from aapa.engine.hub import has_weights, settings_directory

    source = recipe.model.source
    directory = settings_directory(source)
    if not is_hub_name(source):
        SafetensorsWeights(directory, config=read_config(directory))  # looks at the names and shapes of all tensors
        return directory, []
    raise_problems(checkpoint_problems(recipe.parallel, str(directory)), source)
    if has_weights(directory):
        SafetensorsWeights(directory, config=read_config(directory))
        return directory, []
    return directory, [f"model {source}: configuration and tokenizer looked at; a run fetches the weights"]


def _check_anchors(recipe: Recipe, directory: Path | None) -> None:
    """The trunk's layer and the delimiters of spans, by the model in a directory; None where it is from scratch."""
    from aapa.engine.anchor_span import check_spans
    from aapa.engine.discriminator_stage import check_layer
    from aapa.engine.hf_directory import read_config, read_tokenizer
    from aapa.engine.tasks import load_task

    config = None if directory is None else read_config(directory)
    table = recipe.discriminator
    if table is not None and table.reward_model is None and table.source is None:
        layers = recipe.model.num_layers if config is None else int(config.num_hidden_layers)
        check_layer(table.layer, layers, recipe.parallel.pipeline)

    def tokenizer() -> PreTrainedTokenizerFast:
        if directory is None or config is None:
            return load_task(recipe.data.task, recipe.data.options).tokenizer()
        return read_tokenizer(directory, config)

    check_spans(recipe, tokenizer)


def _file_task(recipe: Recipe, directory: Path) -> FileTask:
    """The rows, with the model directory that they are tokenized for."""
    from aapa.engine.data_files import FileTask
    from aapa.engine.hf_directory import read_config, read_tokenizer
    from aapa.engine.setup import check_tokenizer

    config = read_config(directory)
    tokenizer = read_tokenizer(directory, config)
    check_tokenizer(tokenizer)
    return FileTask(recipe, tokenizer, int(config.max_position_embeddings))


def _rows_line(task: FileTask) -> str:
    sizes = ", ".join(f"{len(task.examples(split))} {split}" for split in ("train", "dev", "test"))
    return f"data: {task.rows} rows, {len(task.bad)} set aside; {sizes}; columns {', '.join(task.columns) or 'none'}"


def _check_rewards(recipe: Recipe, example: Example, columns: list[str]) -> list[str]:
    """Call every reward function on one row; one that fails there would be counted as failed in the run."""
    pool = RewardPool(Bounds(recipe.rewards.timeout, recipe.rewards.memory_gb))
    lines: list[str] = []
    arrays = [(f"stages.{index}.rewards", stage.rewards) for index, stage in enumerate(recipe.stages)]
    answer = example.experts[0] if example.experts else ANSWER
    try:
        for field, tables in [*arrays, ("evaluation.rewards", recipe.evaluation.rewards)]:
            for number, table in enumerate(tables):
                rewards = pool.open([table], field, columns)
                (value,) = rewards([example], [answer], [True], [[0]])
                if rewards.last_failure:
                    raise UserError(
                        f"{field}.{number}.function: expected a number or None for the first row, got "
                        f"{rewards.last_failure}"
                    )
                found = "None" if math.isnan(value) else f"{value:g}"
                lines.append(f"reward {table.function}: {found} for the first row with {_what(example)}")
    finally:
        pool.close()
    return lines


def _what(example: Example) -> str:
    return "its expert" if example.experts else "a made-up response"
