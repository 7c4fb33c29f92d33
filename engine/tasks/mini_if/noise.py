"""Wrong experts, for measuring what mistakes in the expert data do to training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Final

from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import Constraint, from_column
from aapa.engine.tasks.mini_if.draws import pick, pick_some
from aapa.engine.tasks.mini_if.experts import sample_experts
from aapa.engine.tasks.mini_if.variants import Variant

KINDS: Final = ("constraint", "topic", "style")
MIXED: Final = "mixed"
CLEAN: Final = "none"
# From what is least often possible to what always is.
_EASIER: Final = ("style", "topic", "constraint")
_ATTEMPTS: Final = 10


def add_noise(examples: Sequence[Example], share: float, kind: str, seed: int, variant: Variant) -> list[Example]:
    """Give wrong experts to examples with probability `share`, and all examples a column `noise` that tells.

    Each example has a random stream of its own. So prompts and the experts of other examples stay as they are,
    what is wrong at a small share is wrong in the same way at a larger one, and all kinds hit the same examples.

    Args:
        examples: of the train split.
        share: the probability, in [0, 1).
        kind: one of `KINDS`, or `MIXED` for one of them at random.
        seed: the task's.
        variant: the task's.
    """
    noisy = []
    for example in examples:
        rng = variant.stream(f"{seed}/noise/{example.id}")
        told = CLEAN
        if rng.random() < share:
            told, experts = wrong_experts(example, pick(rng, KINDS) if kind == MIXED else kind, rng, variant)
            example = replace(example, experts=experts)
        noisy.append(replace(example, columns={**example.columns, "noise": told}))
    return noisy


def wrong_experts(example: Example, kind: str, rng: Random, variant: Variant) -> tuple[str, tuple[str, str]]:
    """Draw two texts that are wrong in the same way for an example's prompt.

    Args:
        example: with the columns of the task.
        kind: `"constraint"`: in the language and about the topic, but one constraint is violated, the others met;
            `"topic"`: every constraint met, about another topic of the same style; `"style"`: every constraint
            met, about the topic, in sentences of the other style.
        rng: the stream to draw from.
        variant: the task's.

    Returns:
        What is wrong, and the texts. For a few prompts no text turns up, for the other style's sentences have other
        lengths, and some prompts are met by luck only: there it is the next of style, topic, constraint.
    """
    topic = example.columns["topic"]
    constraints = [from_column(column) for column in example.columns["constraints"]]
    others = [name for name in variant.lexicon.topic_names if name != topic]
    for told in _EASIER[_EASIER.index(kind) :]:
        for _ in range(_ATTEMPTS):
            if told == "style":
                pair = sample_experts(topic, constraints, rng, templates=variant.other)
            elif told == "topic":
                pair = sample_experts(pick(rng, others), constraints, rng)
            else:
                pair = _violating(topic, constraints, rng)
            if pair is not None:
                return told, pair
    raise AssertionError(f"a prompt without one of its constraints asks for less: {example.prompt!r}")


def _violating(topic: str, constraints: Sequence[Constraint], rng: Random) -> tuple[str, str] | None:
    """Draw texts that meet all constraints but one, the first in random order for which there are any."""
    for violated in pick_some(rng, constraints, len(constraints)):
        rest = [constraint for constraint in constraints if constraint is not violated]
        pair = sample_experts(topic, rest, rng, violated=violated)
        if pair is not None:
            return pair
    return None
