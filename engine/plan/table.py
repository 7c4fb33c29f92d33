"""A plan as tables for people, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from aapa.engine.plan.gpus import PER_NODE, Gpu
from aapa.engine.plan.layout import Layout
from aapa.engine.plan.memory import PHASES
from aapa.engine.plan.model import parameters
from aapa.engine.plan.search import Choice, overrides
from aapa.engine.plan.shapes import state_bytes
from aapa.engine.plan.timing import Assumptions
from aapa.engine.plan.work import Work

GB = 1e9


def gigabytes(size: float) -> str:
    """One decimal, and more of what is small."""
    return f"{size / GB:.1f}" if size >= 0.1 * GB else f"{size / GB:.2g}"


@dataclass(frozen=True)
class Plan:
    """What was planned: choices that fit, the fastest first, and the recipe's own layout where it has one."""

    recipe: str
    model: str
    hf: PretrainedConfig
    work: Work
    gpu: Gpu
    gpus: int
    assumed: Assumptions
    fitting: Sequence[Choice]
    searched: int
    own: Choice | None
    own_problem: str | None


def show(plan: Plan, best: int, console: Console) -> None:
    """Prints the best few layouts, the first in detail, and what was assumed."""
    dtype = {4: "float32", 2: "16 bits"}[plan.work.width]
    console.print(
        f"{plan.recipe}: {plan.model}, {gigabytes(parameters(plan.hf))} B parameters in {dtype}, on {plan.gpus} x "
        f"{plan.gpu.name} of {plan.gpu.memory / GB:g} GB",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(_layouts(plan, best))
    _detail(plan, plan.fitting[0], console)
    for line in _notes(plan):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _layouts(plan: Plan, best: int) -> Table:
    stage = plan.work.stages[-1].name
    title = f"{len(plan.fitting)} of {plan.searched} layouts fit. GB on the fullest rank, * the peak; times of {stage}"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("layout", "saving"):
        table.add_column(name, no_wrap=True)
    for name in (*PHASES, "free", "micro-b.", "bubble", "s/step", "MFU"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(choice, "") for choice in plan.fitting[:best]]
    if plan.own is not None:
        rows.append((plan.own, " (recipe)"))
    for choice, suffix in rows:
        timing = choice.timings[stage]
        top = max(choice.phases, key=lambda phase: choice.phases[phase])
        figures = [
            f"{gigabytes(choice.phases[phase])}{'*' if phase == top else ' '}" if phase in choice.phases else "– "
            for phase in PHASES
        ]
        table.add_row(
            choice.layout.sizes() + suffix,
            _saving(choice.layout),
            *figures,
            f"{-choice.excess(plan.gpu) / GB:.1f}",
            str(timing.micro_batches),
            f"{timing.bubble:.0%}",
            f"{timing.step:.3g}",
            f"{timing.mfu:.0%}",
        )
    return table


def _saving(layout: Layout) -> str:
    """What saves memory at the cost of time, in short."""
    parts = [f"{layout.recompute} recomp."] if layout.recompute != "none" else []
    return ", ".join(parts + (["offload"] if layout.offload else [])) or "–"


def _detail(plan: Plan, choice: Choice, console: Console) -> None:
    layout, memory = choice.layout, choice.memory
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in memory.phases[memory.peak].items() if size)
    stage = plan.work.stages[-1].name
    timing = choice.timings[stage]
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in timing.phases.items())
    sent = ", ".join(f"{kind} {gigabytes(size)}" for kind, size in timing.volumes.items()) or "nothing"
    lines = [
        f"Best: {layout.name()}",
        f"  {overrides(layout)}",
        f"  peak: {memory.peak} of stage {choice.stage}, pipeline rank {choice.place}: {parts} GB",
        f"  a step of {stage}: {seconds}; {timing.communication:.1f} s of the updates wait for communication",
        f"  sent by a rank for an optimizer step, GB: {sent}",
        *(f"  ranks, {line}" for line in rank_lines(choice)),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def rank_lines(choice: Choice) -> list[str]:
    """Which ranks make up the groups of each kind, and whether they span machines."""
    lines = []
    crosses = choice.layout.crosses_nodes(PER_NODE)
    for kind, groups in choice.layout.groups().items():
        if len(groups[0]) > 1:
            some = " ".join("[" + " ".join(map(str, group)) + "]" for group in groups[:4])
            more = " …" if len(groups) > 4 else ""
            lines.append(f"{kind}: {some}{more}{' across machines' if crosses[kind] else ''}")
    return lines


def _notes(plan: Plan) -> list[str]:
    a, stages = plan.assumed, plan.work.stages
    lengths = f"prompts of {stages[-1].prompt} and responses of {stages[-1].response} tokens"
    guesses = []
    if a.update is None:
        share = a.matmul if plan.work.width < 4 else a.matmul_float32
        guesses.append(f"matrix products at {share:.0%} of {plan.gpu.flops / 1e12:g} TFLOP/s")
    guesses += [f"memory at {a.memory:.0%} of {plan.gpu.bandwidth / 1e12:g} TB/s", f"links at {a.link:.0%}"]
    lines = [
        "Weights, gradients and optimizer are exact. Activations, caches and all times are estimates.",
        f"Assumed: {lengths}, all as long as they may be; {', '.join(guesses)}; {PER_NODE} GPUs a machine; flash-attn.",
    ]
    if a.measured:
        lines.append(f"Measured on {plan.gpu.name}: {'; '.join(a.measured)}.")
    if plan.own_problem:
        lines.append(f"The recipe's own layout: {plan.own_problem}")
    elif plan.own is not None and plan.own.excess(plan.gpu) > 0:
        own = plan.own
        lines.append(
            f"The recipe's own layout needs {gigabytes(own.excess(plan.gpu))} GB more than there is, in the "
            f"{own.memory.peak} phase of stage {own.stage}: take one of those above."
        )
    return lines


def as_json(plan: Plan, best: int) -> dict[str, Any]:
    """The same as a table of plain values; bytes and seconds."""
    return {
        "recipe": plan.recipe,
        "model": plan.model,
        "parameters": parameters(plan.hf),
        "gpu": asdict(plan.gpu),
        "gpus": plan.gpus,
        "layouts_searched": plan.searched,
        "layouts_that_fit": len(plan.fitting),
        "layouts": [_choice_json(plan, choice) for choice in plan.fitting[:best]],
        "own": None if plan.own is None else _choice_json(plan, plan.own),
        "own_problem": plan.own_problem,
        "assumptions": asdict(plan.assumed),
    }


def _choice_json(plan: Plan, choice: Choice) -> dict[str, Any]:
    layout = choice.layout
    ranks = [
        asdict(state_bytes(plan.hf, layout, stage, data, plan.work.width)) | {"pipeline_rank": stage, "data_rank": data}
        for stage in range(layout.pipeline)
        for data in range(layout.gradient_ranks if layout.distributed_optimizer else 1)
    ]
    return {
        "layout": asdict(layout),
        "overrides": overrides(layout),
        "engine": plan.work.samples_with(layout),
        "fits": choice.excess(plan.gpu) <= 0,
        "excess_bytes": choice.excess(plan.gpu),
        "peak": {"phase": choice.memory.peak, "stage": choice.stage, "pipeline_rank": choice.place},
        "peak_bytes": choice.memory.most,
        "phase_bytes": choice.phases,
        "breakdown_bytes": {phase: dict(parts) for phase, parts in choice.memory.phases.items()},
        "exact_bytes": ranks,
        "stages": {name: asdict(timing) | {"step_seconds": timing.step} for name, timing in choice.timings.items()},
        "groups": layout.groups(),
        "across_machines": layout.crosses_nodes(PER_NODE),
    }
