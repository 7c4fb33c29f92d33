"""The shape of a recipe's model, from its configuration alone."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from aapa.engine.errors import UserError
from aapa.engine.hf_directory import read_config, read_json
from aapa.engine.hub import is_hub_name
from aapa.engine.plan.published import PUBLISHED
from aapa.engine.policy.families import config_problems
from aapa.engine.policy.names import problem_text
from aapa.engine.recipe import Recipe
from aapa.engine.scratch import scratch_config

FIELD = "model.source"


def model_config(recipe: Recipe) -> PretrainedConfig:
    """The configuration of `model.source`: of the recipe's own shape, a directory, or a name on the hub.

    Names that `PUBLISHED` has need no network; of others config.json is fetched, and nothing else.

    Raises:
        UserError: no such model, or one that the policy would not compute exactly.
    """
    source = recipe.model.source
    if source == "scratch":
        from aapa.engine.tasks import load_task

        return scratch_config(recipe.model, load_task(recipe.data.task, recipe.data.options).tokenizer())
    if not is_hub_name(source):
        return read_config(Path(source))
    name, _, revision = source.partition("@")
    if name in PUBLISHED:
        return Qwen3Config(**PUBLISHED[name])
    return _fetched(name, revision or None)


def parameters(hf: PretrainedConfig) -> int:
    """Of the whole model, a tied embedding once."""
    from aapa.engine.plan.layout import Layout
    from aapa.engine.plan.shapes import stage_parameters

    return sum(parameter.numel for chunk in stage_parameters(hf, Layout(), 0) for parameter in chunk)


def _fetched(name: str, revision: str | None) -> PretrainedConfig:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        file = Path(hf_hub_download(name, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines() or [""]
        raise UserError(
            f"{FIELD}: expected a directory or a model of the hub, got {name!r}: {type(error).__name__}: {first[0]}; "
            f"known without a network: {', '.join(PUBLISHED)}"
        ) from None
    table = read_json(file, FIELD)
    if found := config_problems(table):
        raise UserError(problem_text(f"{FIELD}: {name}", found))
    kinds = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    return kinds[table["model_type"]].from_dict(table)
