"""Checks that span fields, and checks against files and importable names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aapa.engine.hub import is_hub_name
from aapa.engine.policy.families import config_problems
from aapa.engine.recipe.data_checks import data_problems, reward_problems
from aapa.engine.recipe.discriminator_checks import kind_problems, reward_model_problems
from aapa.engine.recipe.objective import load_dotted, objective_kind
from aapa.engine.recipe.problems import Problem, at, short

if TYPE_CHECKING:
    from aapa.engine.recipe.schema import ModelTable, ParallelTable, Recipe, StageTable


def consistency_problems(recipe: Recipe) -> list[Problem]:
    """Everything that can be told from the recipe alone."""
    problems = _model_problems(recipe) if recipe.model.source == "scratch" else _no_shape_problems(recipe.model)
    problems += _layout_problems(recipe.parallel)
    names = Counter(stage.name for stage in recipe.stages)
    for index, stage in enumerate(recipe.stages):
        if stage.name in ("start", "initial") or stage.name.removesuffix("-best") in names.keys() - {stage.name}:
            text = f"expected a name that the run does not use itself, got {short(stage.name)}"
            problems.append(at(f"stages.{index}.name", text))
        if names[stage.name] > 1:
            problems.append(at(f"stages.{index}.name", f"expected a name of its own, got {short(stage.name)} twice"))
        problems += _stage_problems(stage, f"stages.{index}")
        problems += _evaluation_problems(stage, f"stages.{index}")
        problems += _overlong_problems(recipe, stage, f"stages.{index}.objective")
    return problems + data_problems(recipe) + kind_problems(recipe) + _discriminator_problems(recipe)


def environment_problems(recipe: Recipe) -> list[Problem]:
    """What must be looked up: directories named by the recipe, and names it wants imported."""
    problems: list[Problem] = []
    if recipe.model.source != "scratch":
        problems += _checkpoint_problems(recipe)
    table = recipe.discriminator
    if table is not None:
        if table.source is not None and not Path(table.source).is_dir():
            problems.append(at("discriminator.source", f"expected a directory, got {short(table.source)}"))
        if table.trunk not in ("base", "stage_start") and not _config_file(table.trunk).is_file():
            wanted = "'base', 'stage_start' or a directory holding config.json"
            problems.append(at("discriminator.trunk", f"expected {wanted}, got {short(table.trunk)}"))
        problems += reward_model_problems(table)
    for field, name in _dotted_names(recipe):
        try:
            load_dotted(name)
        except ValueError as error:
            problems.append(at(field, str(error)))
    return problems + reward_problems(recipe)


def anchored(stage: StageTable) -> bool:
    """Whether the stage's objective has an anchor that ever acts."""
    anchor = stage.objective.anchor
    return anchor is not None and bool(anchor.active)


def _dotted_names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if ":" in recipe.data.task:
        yield "data.task", recipe.data.task
    if recipe.discriminator is not None and ":" in recipe.discriminator.kind:
        yield "discriminator.kind", recipe.discriminator.kind


def _no_shape_problems(model: ModelTable) -> list[Problem]:
    """The shape comes with the weights."""
    return [
        at(
            f"model.{field}",
            f"expected nothing, for the checkpoint decides it, got {getattr(model, field)!r}",
        )
        for field in model.shape_fields()
        if field in model.model_fields_set
    ]


def _model_problems(recipe: Recipe) -> list[Problem]:
    model, problems = recipe.model, []
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if heads % groups:
        problems.append(at("model.num_key_value_heads", f"expected a divisor of {heads} heads, got {groups}"))
    width = model.head_dim or model.hidden_size // heads
    if model.head_dim is None and model.hidden_size % heads:
        text = f"expected a multiple of {heads} heads where head_dim is not given, got {model.hidden_size}"
        problems.append(at("model.hidden_size", text))
    elif width % 2:
        problems.append(at("model.head_dim", f"expected an even width for the rotary embedding, got {width}"))
    length, longest = recipe.rollout.max_new_tokens, model.max_position_embeddings
    if length >= longest:
        text = f"expected less than max_position_embeddings, {longest}, got {length}"
        problems.append(at("rollout.max_new_tokens", text))
    fields = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "num_layers")
    return problems + _parallel_problems(recipe.parallel, {field: getattr(model, field) for field in fields})


def _parallel_problems(parallel: ParallelTable, shape: dict[str, int]) -> list[Problem]:
    problems: list[Problem] = []
    for field, size in shape.items():
        name, ranks = ("pipeline", parallel.pipeline) if field == "num_layers" else ("tensor", parallel.tensor)
        if size % ranks:
            problems.append(at(f"parallel.{name}", f"expected a divisor of {field}, {size}, got {ranks}"))
    layers, chunks = shape["num_layers"], parallel.pipeline * parallel.virtual
    if parallel.virtual > 1 and layers % parallel.pipeline == 0 and layers % chunks:
        text = f"expected a divisor of the {layers // parallel.pipeline} layers of a stage, got {parallel.virtual}"
        problems.append(at("parallel.virtual", text))
    return problems


def _layout_problems(parallel: ParallelTable) -> list[Problem]:
    """Keys that split nothing at the sizes beside them."""
    problems: list[Problem] = []
    if parallel.sequence and parallel.tensor == 1:
        problems.append(at("parallel.sequence", "expected false with tensor = 1, where nothing is split, got true"))
    if parallel.virtual > 1 and parallel.pipeline == 1:
        text = f"expected 1 with pipeline = 1, where no stage waits for another, got {parallel.virtual}"
        problems.append(at("parallel.virtual", text))
    return problems


def _stage_problems(stage: StageTable, path: str) -> list[Problem]:
    problems: list[Problem] = []
    kind = objective_kind(stage.objective)
    if stage.data == "corpus" and (kind != "sft" or stage.objective.anchor is not None):
        got = kind if kind != "sft" else "sft with an anchor"
        problems.append(at(f"{path}.objective", f"expected plain sft on the corpus, got {got}"))
    for name in ("updates_per_rollout", "epochs_per_rollout", "dynamic_sampling_rounds"):
        if getattr(stage.objective, name) < 1:
            text = f"expected a whole number of at least 1, got {getattr(stage.objective, name)}"
            problems.append(at(f"{path}.objective.{name}", text))
    needs_rewards = stage.objective.needs_rewards
    if needs_rewards and not stage.rewards:
        problems.append(at(f"{path}.rewards", f"expected a reward function for {kind}, got none"))
    if stage.rewards and not needs_rewards:
        text = f"expected none, for {kind} uses no rewards, got {len(stage.rewards)}"
        problems.append(at(f"{path}.rewards", text))
    if stage.warmup_steps > stage.steps:
        text = f"expected at most the stage's {stage.steps} steps, got {stage.warmup_steps}"
        problems.append(at(f"{path}.warmup_steps", text))
    return problems


def _evaluation_problems(stage: StageTable, path: str) -> list[Problem]:
    """What ends a stage by its evaluations needs some."""
    problems: list[Problem] = []
    # evaluation.every may change on resume; what decides a stage's end may not.
    every = stage.evaluate_every or 0
    for name in ("stop", "best"):
        if getattr(stage, name) is not None and not 0 < every <= stage.steps:
            text = f"expected 1 … {stage.steps} for stages.{stage.name}.{name}, got {stage.evaluate_every or 'nothing'}"
            problems.append(at(f"{path}.evaluate_every", text))
    if stage.stop is not None and (stage.stop.at_least is None) == (stage.stop.at_most is None):
        got = "nothing" if stage.stop.at_least is None else "both"
        problems.append(at(f"{path}.stop", f"expected at_least or at_most, got {got}"))
    return problems


def _overlong_problems(recipe: Recipe, stage: StageTable, path: str) -> list[Problem]:
    buffer, limit = stage.objective.overlong_buffer, recipe.rollout.max_new_tokens
    if buffer <= limit:
        return []
    return [at(f"{path}.overlong_buffer", f"expected at most rollout.max_new_tokens, {limit}, got {buffer}")]


def _discriminator_problems(recipe: Recipe) -> list[Problem]:
    stages, table = recipe.stages, recipe.discriminator
    first = next((index for index, stage in enumerate(stages) if anchored(stage)), None)
    if table is None:
        if first is None:
            return []
        return [at("discriminator", f"expected a table, for stage {stages[first].name} is anchored, got nothing")]
    got = "nothing" if table.fit_after is None else short(table.fit_after)
    if table.source is not None:
        text = f"expected nothing where source is given, got {got}"
        return [] if table.fit_after is None else [at("discriminator.fit_after", text)]
    earlier = [stage.name for stage in stages[:first]]
    if recipe.model.source != "scratch":
        earlier.append("start")
    if table.fit_after in earlier:
        return _span_problems(recipe)
    wanted = f"a stage before the first anchored one ({', '.join(earlier) or 'there is none'})"
    return [at("discriminator.fit_after", f"expected {wanted}, got {got}")]


def _span_problems(recipe: Recipe) -> list[Problem]:
    """The discriminator is fitted on one kind of span, which all anchored stages share."""
    anchors = [(i, stage.objective.anchor) for i, stage in enumerate(recipe.stages) if anchored(stage)]
    return [
        at(
            f"stages.{i}.objective.anchor.{name}",
            f"expected {getattr(anchors[0][1], name)!r} as in earlier stages, got {getattr(anchor, name)!r}",
        )
        for name in ("granularity", "span")
        for i, anchor in anchors
        if getattr(anchor, name) != getattr(anchors[0][1], name)
    ]


def _config_file(directory: str) -> Path:
    return Path(directory) / "config.json"


def _checkpoint_problems(recipe: Recipe) -> list[Problem]:
    """A model that is there must be one that can be trained, in this parallel layout; one of the hub is seen later."""
    source = recipe.model.source
    if is_hub_name(source):
        return []
    if not _config_file(source).is_file():
        text = f"expected 'scratch', a directory holding config.json or OWNER/NAME on the hub, got {short(source)}"
        return [at("model.source", text)]
    return checkpoint_problems(recipe.parallel, source)


def checkpoint_problems(parallel: ParallelTable, directory: str) -> list[Problem]:
    """What keeps the model of a directory from being trained in a parallel layout, told from its config.json."""
    file = _config_file(directory)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [at("model.source", f"expected a readable model configuration in {file}, got {error!r}")]
    if not isinstance(config, dict):
        return [at("model.source", f"expected a table in {file}, got {short(config)}")]
    if problems := config_problems(config):
        return [at("model.source", f"{file}: {problem}") for problem in problems]
    heads = config["num_attention_heads"]
    shape = {
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
    }
    return _parallel_problems(parallel, shape)
