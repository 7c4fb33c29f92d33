"""The recipe of a run: a TOML file, validated before any device is touched. Importing it loads no torch."""

from __future__ import annotations

from aapa.engine.recipe.load import load_recipe, parse_recipe, shipped_recipes
from aapa.engine.recipe.problems import RecipeError
from aapa.engine.recipe.reference import recipe_reference
from aapa.engine.recipe.schema import (
    CheckpointTable,
    DataTable,
    DiscriminatorTable,
    EvaluationTable,
    ModelTable,
    ParallelTable,
    Recipe,
    RewardsTable,
    RewardTable,
    RolloutTable,
    StageTable,
)

__all__ = [
    "CheckpointTable",
    "DataTable",
    "DiscriminatorTable",
    "EvaluationTable",
    "ModelTable",
    "ParallelTable",
    "Recipe",
    "RecipeError",
    "RewardTable",
    "RewardsTable",
    "RolloutTable",
    "StageTable",
    "load_recipe",
    "parse_recipe",
    "recipe_reference",
    "shipped_recipes",
]
