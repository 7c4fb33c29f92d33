"""`aapa plan RECIPE --gpu NAME --gpus N`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PretrainedConfig

from aapa.engine.errors import UserError
from aapa.engine.plan.calibration import calibrated
from aapa.engine.plan.gpus import GPUS, Gpu, gpu
from aapa.engine.plan.layout import Layout
from aapa.engine.plan.model import model_config
from aapa.engine.plan.search import (
    Choice,
    candidates,
    evaluate,
    own_layout,
    problems,
    ranked,
)
from aapa.engine.plan.table import GB, Plan, as_json, gigabytes, show
from aapa.engine.plan.timing import Assumptions
from aapa.engine.plan.work import WIDTHS, Work, work_of
from aapa.engine.recipe import Recipe, load_recipe


def plan_command(
    recipe_name: str,
    words: Sequence[str],
    gpu_name: str,
    gpus: int,
    *,
    prompt_tokens: int = 512,
    best: int = 5,
    as_given: bool = False,
    results: Path | None = None,
    json_output: bool = False,
) -> None:
    """Print the layouts that fit, the fastest first.

    Args:
        words: overrides of the recipe.
        as_given: look at the recipe's own layout alone.
        results: folder of measurements; None for no calibration.

    Raises:
        UserError: no layout fits; the message says by how much and what would.
    """
    kind = gpu(gpu_name)
    if gpus < 1:
        raise UserError(f"--gpus: expected at least 1, got {gpus}")
    recipe = load_recipe(recipe_name, words, edit=_without_rows)
    hf = model_config(recipe)
    work = work_of(recipe, hf, prompt_tokens)
    assumed = Assumptions() if results is None else calibrated(kind, results)
    own, own_problem = _own(recipe, hf, work, kind, gpus, assumed)
    if as_given:
        if own is None:
            raise UserError(f"plan: expected a layout of {gpus} GPUs, got the recipe's: {own_problem}")
        fitting, others = ([own], []) if own.excess(kind) <= 0 else ([], [own])
    else:
        layouts = candidates(hf, work, gpus, _base(recipe))
        fitting, others = ranked(hf, work, kind, layouts, assumed)
    if not fitting:
        raise UserError(_refusal(recipe, hf, work, kind, gpus, others, as_given))
    plan = Plan(
        recipe=recipe.name,
        model=recipe.model.source,
        hf=hf,
        work=work,
        gpu=kind,
        gpus=gpus,
        assumed=assumed,
        fitting=fitting,
        searched=len(fitting) + len(others),
        own=None if as_given else own,
        own_problem=own_problem,
    )
    if json_output:
        print(json.dumps(as_json(plan, best), indent=1))
    else:
        show(plan, best, Console() if sys.stdout.isatty() else Console(width=120))


def _without_rows(table: dict[str, Any]) -> None:
    """Shapes need no rows: a recipe for rows of one's own need not name them here."""
    data = table.get("data")
    if not isinstance(data, dict):
        return
    settings = data.keys() - {"options"}
    if settings and not settings & {"files", "dataset", "task"}:
        data["files"] = "rows.jsonl"  # nobody opens it


def _base(recipe: Recipe) -> Layout:
    """The recipe's layout on as many GPUs as one replica has."""
    table = recipe.parallel
    return own_layout(table, table.tensor * table.pipeline * table.context)


def _own(
    recipe: Recipe, hf: PretrainedConfig, work: Work, kind: Gpu, gpus: int, assumed: Assumptions
) -> tuple[Choice | None, str | None]:
    """The recipe's own layout on so many GPUs, or why there is none."""
    try:
        layout = own_layout(recipe.parallel, gpus)
    except UserError as error:
        return None, str(error)
    found = problems(hf, layout, work)
    if found:
        return None, found[0]
    return evaluate(hf, layout, work, kind, assumed), None


def _refusal(
    recipe: Recipe,
    hf: PretrainedConfig,
    work: Work,
    kind: Gpu,
    gpus: int,
    others: Sequence[Choice],
    as_given: bool,
) -> str:
    if not others:
        layouts = (Layout(tensor=t, data=gpus // t) for t in (1, 2, 4, 8) if gpus % t == 0)
        found = dict.fromkeys(line for layout in layouts for line in problems(hf, layout, work))
        return f"plan: expected a layout of {gpus} GPUs that the engine accepts, got none:\n" + "\n".join(found)
    nearest = others[0]
    memory = nearest.memory
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in memory.phases[memory.peak].items() if size)
    what = "the recipe's layout" if as_given else "a layout"
    excess = f"{gigabytes(nearest.excess(kind))} GB too much{'' if as_given else ' at the least'}"
    where = f"{gigabytes(memory.most)} GB in the {memory.peak} phase of stage {nearest.stage}"
    lines = [
        f"plan: expected {what} that fits {gpus} x {kind.name} of {kind.memory / GB:g} GB, got {excess}",
        f"with {nearest.layout.name()}: {where}, pipeline rank {nearest.place} ({parts})",
    ]
    fit = list(_remedies(recipe, hf, work, kind, gpus))
    lines.append("what would fit: " + ("; ".join(fit) if fit else "none of the changes that were tried"))
    return "\n".join(lines)


def _remedies(recipe: Recipe, hf: PretrainedConfig, work: Work, kind: Gpu, gpus: int) -> Iterator[str]:
    """Changes after which a layout fits, each with the best one: of every kind of change the smallest."""
    longest = max(stage.length for stage in work.stages)
    kinds: list[list[tuple[str, Work, Gpu, int]]] = [[], [], []]
    if work.width == 4:
        kinds.append([("--model.dtype bfloat16", replace(work, width=WIDTHS["bfloat16"]), kind, gpus)])
    for divisor in (2, 4, 8, 16):
        tokens, batch = work.micro_batch_tokens // divisor, work.max_batch // divisor
        if tokens >= longest:
            smaller = replace(work, micro_batch_tokens=tokens)
            kinds[0].append((f"--parallel.micro_batch_tokens {tokens}", smaller, kind, gpus))
        if batch:
            kinds[1].append((f"--rollout.max_batch {batch}", replace(work, max_batch=batch), kind, gpus))
    kinds[2] = [(f"--gpus {gpus * times}", work, kind, gpus * times) for times in (2, 4, 8)]
    for name, other in GPUS.items():
        if other.memory > kind.memory:
            kinds.append([(f"--gpu {name} --gpus {gpus * times}", work, other, gpus * times) for times in (1, 2, 4)])
    base = _base(recipe)
    for changes in kinds:
        for name, other_work, other_gpu, count in changes:
            layouts = candidates(hf, other_work, count, base)
            fitting, _ = ranked(hf, other_work, other_gpu, layouts, Assumptions())
            if fitting:
                yield f"{name} ({fitting[0].layout.name()})"
                break
