"""Checks of what a kind of discriminator needs, and of what it leaves unused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from aapa.engine.recipe.problems import Problem, at, short, suggestion

if TYPE_CHECKING:
    from aapa.engine.recipe.schema import DiscriminatorTable, Recipe

KINDS = ("sentence", "cosine", "polar")
# Keys of a trunk; a reward model is read as a whole.
TRUNK_KEYS = ("trunk", "layer", "logprob_features")


def discriminator_kind(value: str) -> str:
    """Validates `discriminator.kind`."""
    if value in KINDS or re.fullmatch(r"[^:\s]+:[^:\s]+", value):
        return value
    raise ValueError(f"expected {suggestion(value, KINDS)}, or 'package.module:Class', got {value!r}")


def kind_problems(recipe: Recipe) -> list[Problem]:
    """What can be told of `discriminator.kind` from the recipe alone."""
    table = recipe.discriminator
    if table is None:
        return []
    if table.kind == "polar":
        return _reward_model_problems(recipe, table)
    problems = _held_out_problems(table)
    if table.reward_model is not None:
        text = f"expected nothing for kind {short(table.kind)}, got {short(table.reward_model)}"
        problems.append(at("discriminator.reward_model", text))
    if ":" in table.kind and table.source is None:
        text = f"expected the directory of a frozen discriminator, for kind {short(table.kind)} is fitted elsewhere"
        problems.append(at("discriminator.source", f"{text}, got nothing"))
    return problems


def splits(table: DiscriminatorTable, prompts: int) -> bool:
    """Whether so many prompts are enough on both sides of a fit's split."""
    held_out = round(table.held_out * prompts)
    return min(held_out, prompts - held_out) >= 2


def _held_out_problems(table: DiscriminatorTable) -> list[Problem]:
    """A fit needs prompts on both sides of its split."""
    if table.source is not None or splits(table, table.prompts):
        return []
    text = f"expected 2 held out and 2 others at least with discriminator.held_out = {table.held_out:g}"
    return [at("discriminator.prompts", f"{text}, got {table.prompts} in all")]


def reward_model_problems(table: DiscriminatorTable) -> list[Problem]:
    """What must be looked up."""
    if table.reward_model is None or (Path(table.reward_model) / "config.json").is_file():
        return []
    text = f"expected a directory holding config.json, got {short(table.reward_model)}"
    return [at("discriminator.reward_model", text)]


def _reward_model_problems(recipe: Recipe, table: DiscriminatorTable) -> list[Problem]:
    problems = _held_out_problems(table)
    if table.reward_model is None and table.source is None:
        problems.append(at("discriminator.reward_model", "expected a directory for kind 'polar', got nothing"))
    for key in TRUNK_KEYS:
        if getattr(table, key) != type(table).model_fields[key].default:
            text = f"expected nothing for kind 'polar', which has no trunk, got {short(getattr(table, key))}"
            problems.append(at(f"discriminator.{key}", text))
    for index, stage in enumerate(recipe.stages):
        anchor = stage.objective.anchor
        if anchor is not None and anchor.active and anchor.granularity != "response":
            text = f"expected 'response' for a discriminator of kind 'polar', got {anchor.granularity!r}"
            problems.append(at(f"stages.{index}.objective.anchor.granularity", text))
    return problems
