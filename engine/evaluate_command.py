"""`aapa eval`: a policy that lies on disk, judged as a run judges its own."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aapa.engine.errors import UserError
from aapa.engine.hub import is_hub_name
from aapa.engine.recipe import Recipe, load_recipe, parse_recipe

# More prompts than any file has: all of them.
ALL = 10**9
# What a recipe says of its rows that is true of other rows, too.
_READING = ("prompt_column", "expert_column", "wrap_prompts", "template_kwargs", "max_bad_fraction")


@dataclass(frozen=True)
class Policy:
    """What is evaluated: a model, or the weights in a checkpoint of a run.

    Attributes:
        name: for the row of the summary.
        model: a Hugging Face directory or a name on the hub; None for the recipe's own.
        checkpoint: directory of a checkpoint, whose weights take the place of the recipe's.
    """

    name: str
    model: str | None = None
    checkpoint: Path | None = None


def evaluate_policy(
    recipe: str, overrides: Sequence[str], policy: str | None, rows: Sequence[str], output: Path | None
) -> None:
    """Sample a response per prompt, judge them, and print the figures.

    Args:
        recipe: a TOML file, the name of a recipe of the package, or a run directory.
        overrides: keys of the recipe, as on the command line of `aapa train`.
        policy: a Hugging Face directory, a name on the hub, a checkpoint or a run directory; by default the run's
            `final/`, or the recipe's `model.source`.
        rows: files of rows that are judged, all of them, instead of the recipe's `evaluation.final_split`.
        output: directory that gets a row more in summary.json, and samples; None writes nothing.

    Raises:
        UserError: there is no such policy, or the recipe, the rows or the rewards are not as they should be.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"output: expected a directory of evaluations to write to, got the file {output}")
    file = Path(recipe)
    if file.is_dir():
        file, policy = file / "recipe.toml", policy or recipe
        if not file.is_file():
            raise UserError(f"recipe: expected a recipe or a run directory with recipe.toml, got {recipe}")
    chosen = find_policy(policy)
    loaded = load_recipe(file, overrides, edit=partial(_put, model=chosen.model, rows=rows))
    if chosen.model is None and chosen.checkpoint is None and loaded.model.source == "scratch":
        raise UserError("policy: expected --policy DIR for a recipe whose model begins from scratch, got nothing")
    judged = parse_recipe(_judging_table(loaded), label=str(recipe))
    with _directory(output) as directory:
        _evaluate(judged, chosen, directory)


def find_policy(given: str | None) -> Policy:
    """The policy that a word on the command line names.

    Raises:
        UserError: nothing of the kind lies there.
    """
    if given is None:
        return Policy("model.source")
    directory = Path(given)
    if (directory / "config.json").is_file() or is_hub_name(given):
        return Policy(given, model=given)
    if (directory / "manifest.json").is_file():
        return Policy(given, checkpoint=directory)
    if (directory / "final" / "config.json").is_file():
        return Policy(str(directory / "final"), model=str(directory / "final"))
    if (directory / "checkpoints").is_dir():
        raise UserError(f"policy: expected a finished run with final/, or one of {directory}/checkpoints, got {given}")
    wanted = "a directory with config.json, a checkpoint, a run directory or OWNER/NAME on the hub"
    raise UserError(f"policy: expected {wanted}, got {given!r}")


def _put(table: dict[str, Any], model: str | None, rows: Sequence[str]) -> None:
    """Put model and rows in the place of the recipe's own."""
    if model is not None:
        table["model"] = {"source": model}
    if rows:
        files = [str(Path.cwd() / name) for name in rows]
        known = table.get("data", {})
        table["data"] = {key: known[key] for key in _READING if key in known}
        table["data"] |= {"files": files, "evaluation_files": files, "held_out": 0.0}
        table["evaluation"] = table.get("evaluation", {}) | {"final_split": "test", "final_prompts": ALL}


def _judging_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe with one stage that is not trained: it decides what is needed of rows and rewards."""
    from aapa.engine.data_files import judging_rewards, uses_files

    table = recipe.table()
    rewards = [reward.model_dump() for reward in judging_rewards(recipe)[0]]
    table["evaluation"]["rewards"] = rewards if uses_files(recipe) else []
    # Rewards alone need no experts; without any, experts are what there is to measure by.
    judged = {"rewards": rewards, "objective": {"kind": "grpo"}} if rewards else {"objective": {"kind": "sft"}}
    # Any number of replicas divides the number of processes.
    prompts = int(os.environ.get("WORLD_SIZE", "1"))
    table["stages"] = [{"name": "eval", "steps": 1, "prompts_per_step": prompts, "learning_rate": 1e-6} | judged]
    table["discriminator"] = None
    return table


@contextmanager
def _directory(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _evaluate(recipe: Recipe, policy: Policy, directory: Path) -> None:
    import torch

    from aapa.engine.checkpoint import open_checkpoint
    from aapa.engine.evaluate import evaluate
    from aapa.engine.policy import parallel as groups
    from aapa.engine.setup import open_run, start_groups

    layout = recipe.parallel
    torch.set_num_threads(layout.threads)
    began = time.monotonic()
    parallel = start_groups(layout)
    try:
        run = open_run(recipe, directory, parallel)
        with closing(run.pool):
            if policy.checkpoint is not None:
                run.policy.load(open_checkpoint(policy.checkpoint).path)
            run.sync_engine()
            settings = recipe.evaluation
            data = run.evaluation_data(settings.final_split, settings.final_prompts)
            result = evaluate(run, data, settings.final_split, None, "eval", 0)
        if parallel.is_main:
            _report(recipe, policy, result, directory, time.monotonic() - began)
    finally:
        groups.stop()


def _report(recipe: Recipe, policy: Policy, result: Any, directory: Path, seconds: float) -> None:
    """Print the figures, and add them to the directory's summary and samples."""
    from dataclasses import replace

    from aapa.engine.metrics import SAMPLES_FILE, SampleLog
    from aapa.engine.report import print_table
    from aapa.engine.summary import SummaryFile

    path = directory / "summary.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        summary = SummaryFile(directory, json.loads(path.read_text()) if path.is_file() else [])
        summary.add(recipe, policy.name, result, None, None, seconds)
        summary.write()
        samples = directory / SAMPLES_FILE
        with SampleLog(directory, samples.stat().st_size if samples.is_file() else None) as log:
            for sample in result.samples:
                log.write(replace(sample, stage=policy.name))
    except (OSError, ValueError) as error:
        raise UserError(f"output: expected a directory of evaluations to write to, got {directory}: {error}") from None
    print_table(summary.rows)
