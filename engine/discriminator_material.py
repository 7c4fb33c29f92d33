"""What a run's discriminator is fitted on, and the part of it that a refresh looks at again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from aapa.discriminator import FitMaterial, FitSettings
from aapa.discriminator.fit import split_material
from aapa.discriminator.material import anchored_material
from aapa.engine.anchor_span import delimiter_ids, first_anchor
from aapa.engine.data import Sampler, TokenizedExample, tokenize
from aapa.engine.recipe import DiscriminatorTable
from aapa.engine.rollout import sample_seed
from aapa.engine.run import Run
from aapa.kernels import SentenceTable
from aapa.sentences import Granularity


def draw_material(run: Run, settings: DiscriminatorTable) -> tuple[list[TokenizedExample], list[FitMaterial]]:
    """Training prompts, and beside their experts fresh rollouts of the policy."""
    examples = run.task.examples("train")
    drawn = Sampler(len(examples), run.recipe.seed, "discriminator").batch(0, min(settings.prompts, len(examples)))
    data = tokenize([examples[i] for i in drawn], run.tokenizer, run.policy.hf.max_position_embeddings, "train")
    return data, material_of(run, settings, data, [e.example.id for e in data])


def material_of(
    run: Run, settings: DiscriminatorTable, data: Sequence[TokenizedExample], names: Sequence[int]
) -> list[FitMaterial]:
    """Examples with fresh rollouts, whose seeds depend on the run's and on the example's name."""
    count = settings.rollouts_per_prompt
    rollouts = run.generate(
        [e.prompt for e in data for _ in range(count)],
        [sample_seed(run.recipe.seed, "discriminator", name, i) for name in names for i in range(count)],
        run.recipe.rollout.max_new_tokens,
        run.recipe.rollout.temperature,
    )
    return [
        FitMaterial(e.prompt, list(e.experts), [r.response for r in rollouts[i * count : (i + 1) * count]])
        for i, e in enumerate(data)
    ]


def held_out_names(
    run: Run,
    settings: FitSettings,
    table: SentenceTable,
    data: Sequence[TokenizedExample],
    material: Sequence[FitMaterial],
) -> list[tuple[str, int]]:
    """(key, name) of the prompts that a fit to the material held out, for the discriminator's record."""
    names = {prompt_key(e.prompt): e.example.id for e in data}
    _, held_out = split_material(anchored_material(material, table, settings.delimiters), settings, run.recipe.seed)
    return [(key, names[key]) for key in (prompt_key(item.prompt) for item in held_out)]


def held_out_again(
    run: Run, settings: DiscriminatorTable, held_out: Sequence[tuple[str, int]], data: Sequence[TokenizedExample]
) -> list[FitMaterial]:
    """The prompts that a fit held out and that are still there, with their experts of today and the same rollouts.

    Args:
        held_out: of the record.
        data: today's training examples, in any order.
    """
    wanted = dict(held_out)
    found: dict[str, TokenizedExample] = {}
    for example in data:
        key = prompt_key(example.prompt)
        if key in wanted:
            found.setdefault(key, example)
    kept = [(found[key], name) for key, name in held_out if key in found]
    return material_of(run, settings, [example for example, _ in kept], [name for _, name in kept])


def prompt_key(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def fit_settings(run: Run, table: DiscriminatorTable) -> FitSettings:
    """The recipe's numbers, and granularity and span of the stages that will use them."""
    anchor = first_anchor(run.recipe)
    usual: Granularity = "response" if table.kind == "polar" else "sentence"
    numbers: dict[str, Any] = {
        name: getattr(table, name)
        for name in (
            "layer",
            "rank",
            "width",
            "temperature",
            "loss",
            "corruptions_per_prompt",
            "steps",
            "batch_size",
            "learning_rate",
            "weight_decay",
            "held_out",
        )
    }
    return FitSettings(
        # A reward model is only calibrated, as "cosine" is.
        kind="sentence" if table.kind == "sentence" else "cosine",
        granularity=usual if anchor is None else anchor.granularity,
        delimiters=None if anchor is None else delimiter_ids(run.tokenizer, anchor),
        **numbers,
    )
