"""Checks of the tables that say where rows come from and what rewards responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aapa.engine.errors import UserError
from aapa.engine.recipe.problems import Problem, at, short
from aapa.engine.reward_process import Bounds

if TYPE_CHECKING:
    from aapa.engine.recipe.data_tables import DataTable, RewardTable
    from aapa.engine.recipe.schema import Recipe

SPLITS = ("train", "dev", "test")
# Keys that say something about rows of one's own only.
_OF_ROWS = (
    "evaluation_files",
    "held_out",
    "prompt_column",
    "expert_column",
    "wrap_prompts",
    "template_kwargs",
    "max_bad_fraction",
)
# What the run gives to `apply_chat_template` itself, or what is none of the template's business.
_OF_TEMPLATES = (
    "conversation",
    "messages",
    "tokenize",
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)


def data_problems(recipe: Recipe) -> list[Problem]:
    """What does not go together in `data`, with the stages and with the evaluation."""
    data = recipe.data
    own = bool(data.files) or data.dataset is not None
    problems = _dataset_problems(recipe) + _weight_problems(recipe)
    if not own:
        problems += _without_rows(data)
        if recipe.evaluation.rewards:
            text = "expected none, for the task judges, got " + str(len(recipe.evaluation.rewards))
            problems.append(at("evaluation.rewards", text))
        return problems
    for field in ("task", "options"):
        if _given(data, field):
            text = f"expected nothing beside data.files or data.dataset, got {short(getattr(data, field))}"
            problems.append(at(f"data.{field}", text))
    if recipe.model.source == "scratch":
        text = "expected a Hugging Face directory, whose tokenizer the rows need, got 'scratch'"
        problems.append(at("model.source", text))
    problems += [
        at(f"data.template_kwargs.{name}", f"expected a keyword that the run does not give itself, got {name!r}")
        for name in _OF_TEMPLATES
        if name in data.template_kwargs
    ]
    if data.expert_column == data.prompt_column:
        problems.append(
            at("data.expert_column", f"expected another column than the prompt's, got {short(data.expert_column)}")
        )
    for index, stage in enumerate(recipe.stages):
        if stage.data == "corpus":
            text = "expected 'examples' with data.files or data.dataset, got 'corpus'"
            problems.append(at(f"stages.{index}.data", text))
    if data.held_out == 0 and not data.evaluation_files and data.evaluation_split is None:
        text = "expected more than 0 without data.evaluation_files or data.evaluation_split, got 0.0"
        problems.append(at("data.held_out", text))
    for field in ("split", "final_split"):
        value = getattr(recipe.evaluation, field)
        if value not in SPLITS:
            problems.append(at(f"evaluation.{field}", f"expected one of {', '.join(SPLITS)}, got {short(value)}"))
    return problems


def _without_rows(data: DataTable) -> list[Problem]:
    """Settings for rows where there are none: forgotten rows, as in the package's recipes, unless a task is named."""
    given = [field for field in _OF_ROWS if _given(data, field)]
    if given and not _given(data, "task"):
        text = f"expected the rows that data.{given[0]} speaks of, got none; give --data.files rows.jsonl"
        return [at("data.files", text)]
    return [
        at(f"data.{field}", f"expected nothing without data.files or data.dataset, got {short(getattr(data, field))}")
        for field in given
    ]


def reward_problems(recipe: Recipe) -> list[Problem]:
    """Reward functions that cannot be loaded; one's own are looked at in the processes that they will run in."""
    from aapa.engine.rewards import RewardPool

    pool = RewardPool(Bounds(recipe.rewards.timeout, recipe.rewards.memory_gb))
    problems: list[Problem] = []
    try:
        for path, rewards in _reward_arrays(recipe):
            for number, reward in enumerate(rewards):
                try:
                    pool.load(reward.function, f"{path}.{number}.function")
                except UserError as error:
                    problems.append(at(f"{path}.{number}.function", str(error).partition(": ")[2]))
    finally:
        pool.close()
    return problems


def _reward_arrays(recipe: Recipe) -> Iterator[tuple[str, list[RewardTable]]]:
    for index, stage in enumerate(recipe.stages):
        yield f"stages.{index}.rewards", stage.rewards
    yield "evaluation.rewards", recipe.evaluation.rewards


def _given(data: DataTable, field: str) -> bool:
    """Whether a field is not at its default; a resolved recipe has all fields."""
    return bool(getattr(data, field) != type(data).model_fields[field].get_default(call_default_factory=True))


def _dataset_problems(recipe: Recipe) -> list[Problem]:
    data = recipe.data
    if data.files and data.dataset is not None:
        return [at("data.dataset", f"expected nothing beside data.files, got {short(data.dataset)}")]
    problems = [
        at(f"data.{field}", f"expected nothing without data.dataset, got {short(getattr(data, field))}")
        for field in ("subset", "split", "evaluation_split")
        if data.dataset is None and _given(data, field)
    ]
    if data.evaluation_split is not None and data.evaluation_files:
        text = f"expected nothing beside data.evaluation_files, got {short(data.evaluation_split)}"
        problems.append(at("data.evaluation_split", text))
    return problems


def _weight_problems(recipe: Recipe) -> list[Problem]:
    problems: list[Problem] = []
    for path, rewards in _reward_arrays(recipe):
        if rewards and not any(reward.weight for reward in rewards):
            text = "expected a weight other than 0 for some reward function, got 0 for all"
            problems.append(at(f"{path}.0.weight", text))
        names = [reward.function for reward in rewards]
        problems += [
            at(f"{path}.{place}.function", f"expected each function once, got {short(name)} again")
            for place, name in enumerate(names)
            if name in names[:place]
        ]
    return problems
