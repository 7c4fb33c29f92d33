"""Layouts of a number of GPUs, each with its memory and time, the best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from transformers import PretrainedConfig

from aapa.engine.errors import UserError
from aapa.engine.plan.gpus import PER_NODE, Gpu
from aapa.engine.plan.layout import Layout, divisors
from aapa.engine.plan.memory import Memory, rank_memory
from aapa.engine.plan.shapes import state_bytes
from aapa.engine.plan.timing import Assumptions, Clock, Timing
from aapa.engine.plan.work import StageWork, Work
from aapa.engine.recipe import ParallelTable

# Context parallelism is worth its communication for long sequences alone.
CONTEXT_FROM = 8192


@dataclass(frozen=True)
class Choice:
    """A layout, and what it comes to.

    Attributes:
        stage: of the recipe, the one whose peak is highest.
        place: pipeline rank that needs most.
        memory: of that rank, in that stage.
        phases: highest bytes of any rank and stage, by phase.
        timings: by stage of the recipe.
    """

    layout: Layout
    stage: str
    place: int
    memory: Memory
    phases: dict[str, float]
    timings: dict[str, Timing]

    def excess(self, gpu: Gpu) -> float:
        """Bytes above the GPU's memory; 0 or less where it fits."""
        return self.memory.most - gpu.memory

    @property
    def step_seconds(self) -> float:
        """Of all stages' steps, weighed alike: what layouts are ranked by."""
        return sum(timing.step for timing in self.timings.values())


def evaluate(hf: PretrainedConfig, layout: Layout, work: Work, gpu: Gpu, assumed: Assumptions) -> Choice:
    """Memory and time of a layout."""
    phases: dict[str, float] = {}
    fullest: tuple[Memory, StageWork, int] | None = None
    for stage in work.stages:
        for place in sorted({0, layout.pipeline // 2, layout.pipeline - 1}):
            memory = rank_memory(hf, layout, work, stage, place)
            for phase in memory.phases:
                phases[phase] = max(phases.get(phase, 0.0), memory.total(phase))
            if fullest is None or memory.most > fullest[0].most:
                fullest = memory, stage, place
    assert fullest is not None
    clock = Clock(hf, layout, work, gpu, assumed)
    timings = {stage.name: clock.time(stage) for stage in work.stages}
    return Choice(layout, fullest[1].name, fullest[2], fullest[0], phases, timings)


def problems(hf: PretrainedConfig, layout: Layout, work: Work) -> list[str]:
    """Why the engine would refuse a layout."""
    found = []
    sizes = {
        "num_attention_heads": hf.num_attention_heads,
        "num_key_value_heads": hf.num_key_value_heads,
        "intermediate_size": hf.intermediate_size,
    }
    for name, size in sizes.items():
        if size % layout.tensor:
            found.append(f"parallel.tensor: expected a divisor of {name}, {size}, got {layout.tensor}")
    if hf.num_hidden_layers % (layout.pipeline * layout.virtual):
        chunks = f"{layout.pipeline * layout.virtual} chunks of layers"
        found.append(f"parallel.pipeline: expected a divisor of num_layers, {hf.num_hidden_layers}, got {chunks}")
    found += _copy_problems(hf, layout, work)
    for stage, prompts in zip(work.stages, work.prompts_per_step, strict=True):
        if prompts % layout.data or (prompts // layout.data) % stage.updates:
            found.append(
                f"stages.{stage.name}.prompts_per_step: expected a multiple of {layout.data * stage.updates}, "
                f"replicas times updates per rollout, got {prompts}"
            )
    return found


def _copy_problems(hf: PretrainedConfig, layout: Layout, work: Work) -> list[str]:
    """The recipe bounds the rollout engine's own copy of the model."""
    copied = any(stage.rollouts for stage in work.stages) and work.samples_with(layout) == "transformers"
    size = state_bytes(hf, Layout(), 0, 0, work.width).weights
    if not copied or size <= work.copy_limit:
        return []
    wanted = f"expected at least {size / 1e9:.3g} for the rollout engine's copy of the model"
    return [f"rollout.memory_limit_gb: {wanted}, got {work.copy_limit / 1e9:g}"]


def candidates(hf: PretrainedConfig, work: Work, gpus: int, own: Layout) -> Iterator[Layout]:
    """Layouts of so many GPUs that the engine accepts.

    Args:
        own: the recipe's layout, which settles what is not searched.
    """
    longest = max(stage.length for stage in work.stages)
    contexts = (1, 2, 4, 8) if longest >= CONTEXT_FROM else (1,)
    for tensor in divisors(gpus, PER_NODE):
        for pipeline in divisors(gpus // tensor, hf.num_hidden_layers):
            for context in contexts:
                if (gpus // tensor // pipeline) % context:
                    continue
                data = gpus // (tensor * pipeline * context)
                for layout in _variants(tensor, pipeline, context, data, own):
                    if not problems(hf, layout, work):
                        yield layout


def _variants(tensor: int, pipeline: int, context: int, data: int, own: Layout) -> Iterator[Layout]:
    shared = data * context > 1
    offloads = (True,) if own.offload else (False, True)
    virtuals = (1, 2) if pipeline > 1 else (1,)
    for recompute, virtual, offload in product(("none", "full"), virtuals, offloads):
        yield Layout(
            tensor=tensor,
            pipeline=pipeline,
            context=context,
            data=data,
            virtual=virtual,
            sequence=tensor > 1,
            recompute=recompute,
            distributed_optimizer=shared,
            overlap=shared,
            offload=offload,
        )


def ranked(
    hf: PretrainedConfig, work: Work, gpu: Gpu, layouts: Iterator[Layout], assumed: Assumptions
) -> tuple[list[Choice], list[Choice]]:
    """(those that fit, the fastest first; the others, the smallest excess first)."""
    choices = [evaluate(hf, layout, work, gpu, assumed) for layout in layouts]
    fitting = sorted((c for c in choices if c.excess(gpu) <= 0), key=lambda c: (c.step_seconds, c.memory.most))
    others = sorted((c for c in choices if c.excess(gpu) > 0), key=lambda c: c.memory.most)
    return fitting, others


# Fields of `Layout` that a key of [parallel] of the same name sets.
KEYS = (
    "tensor",
    "sequence",
    "pipeline",
    "virtual",
    "context",
    "distributed_optimizer",
    "overlap",
    "recompute",
    "offload",
)


def own_layout(table: ParallelTable, gpus: int) -> Layout:
    """The recipe's own layout on so many GPUs.

    Raises:
        UserError: it does not divide them.
    """
    values = {key: getattr(table, key) for key in KEYS}
    layout = Layout(**values)
    replica = layout.replica
    if gpus % replica:
        raise UserError(f"--gpus: expected a multiple of the recipe's {replica} GPUs of a replica, got {gpus}")
    return Layout(**{**values, "data": gpus // replica})


def overrides(layout: Layout) -> str:
    """The words of the command line that set a layout."""
    words = []
    for key in KEYS:
        value = getattr(layout, key)
        if value != ParallelTable.model_fields[key].default or key in ("tensor", "pipeline"):
            words.append(f"--parallel.{key} {str(value).lower()}")
    return " ".join(words)
