"""Fits where `anchor.span` leaves parts of responses out (METHOD §1): they are context, and nothing else."""

from __future__ import annotations

import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import FitMaterial, FitSettings, RewardModelView, calibrate_reward_model, examine_reward_model
from aapa.discriminator.base import Origin
from aapa.discriminator.corruptions import CORRUPTIONS, Corruptor
from aapa.discriminator.fit import fit_sentence_discriminator, split_material
from aapa.discriminator.material import Tokenization, anchored_material, build_pool, without_delimited
from aapa.discriminator.polar import Comparison
from aapa.sentences import build_sentence_table, outside

sys.path.insert(0, str(Path(__file__).parent))

import toy_language as toy
from toy_language import ROLES, ToyTrunk, make_material

OPEN, CLOSE = len(toy.VOCABULARY), len(toy.VOCABULARY) + 1
TEXTS = toy.TEXTS | {OPEN: " <think>", CLOSE: " </think>"}
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({text: index for index, text in TEXTS.items()}, ".")),
        eos_token="<eos>",
    )
)
QUICK = FitSettings(rank=32, width=32, steps=200, batch_size=64, learning_rate=3e-3, held_out=0.4)
SPAN = replace(QUICK, delimiters=(OPEN, CLOSE))


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[i] for i in ids)


class Trunk(ToyTrunk):
    """`ToyTrunk` with states for the delimiters."""

    def __init__(self, memory: float = 0.0) -> None:
        super().__init__(memory)
        self.embedding_VD = self.embedding_VD[[*range(OPEN), 2, 3]]


def thinking(thought: list[int], answer: list[int]) -> list[int]:
    return [OPEN, *thought, CLOSE, *answer]


def material_with_thoughts(prompts: int, styles: tuple[int, int]) -> list[FitMaterial]:
    """Experts and rollouts that answer alike and think in different styles."""
    answers = make_material(prompts, expert_style=0, rollout_style=0)
    thoughts = make_material(prompts, *styles, seed=1)
    return [
        FitMaterial(
            a.prompt,
            [thinking(t[:-1], r) for t, r in zip(b.experts, a.experts, strict=True)],
            [thinking(t[:-1], r) for t, r in zip(b.rollouts, a.rollouts, strict=True)],
        )
        for a, b in zip(answers, thoughts, strict=True)
    ]


def fit(material: list[FitMaterial], how: FitSettings):
    return fit_sentence_discriminator(Trunk(), material, how, toy.encode, decode, TABLE, seed=0)


def test_how_one_thinks_gives_nobody_away() -> None:
    material = material_with_thoughts(80, (0, 1))
    _, whole = fit(material, replace(QUICK, corruptions_per_prompt=0))
    assert whole.rollouts > 0.68, "thoughts of another style are seen where they count"
    _, card = fit(material, replace(SPAN, corruptions_per_prompt=0))
    assert card.rollouts == pytest.approx(0.5, abs=0.08)
    assert card.counts["positives"] == 32 * ROLES
    assert card.counts["rollouts"] == 3 * 32 * ROLES


def test_without_context_the_pool_is_that_of_the_answers() -> None:
    """A trunk that remembers nothing has the same states for an answer, with thoughts before it or without."""
    material = material_with_thoughts(6, (0, 1))
    how = Tokenization(toy.encode, decode, TABLE, "sentence", (OPEN, CLOSE))
    pools = [
        build_pool(Trunk(), items, tokenization, 4, random.Random(3), reference_only=True)
        for items, tokenization in (
            (material, how),
            (without_delimited(material, TABLE, (OPEN, CLOSE)), replace(how, delimiters=None)),
        )
    ]
    for name in ("state_SD", "length_S", "kind_S", "prompt_R", "rollout_length_N"):
        torch.testing.assert_close(*(getattr(pool, name) for pool in pools), msg=name)
    for name in ("responses", "experts", "rollouts", "damaged"):
        torch.testing.assert_close(*(vars(getattr(pool, name)) for pool in pools), msg=name)
    assert int(pools[0].damaged.count_G.sum()) > 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CORRUPTIONS), st.integers(0, 2), st.integers(0, 10_000))
def test_thoughts_are_never_damaged(kind: str, index: int, seed: int) -> None:
    answer, thought = ([*toy.encode(text)] for text in ("w1 w2 w3. w4 w5. w6 w7 w8.", "w11 w12. w13 w14."))
    responses = [
        thinking(thought, [*answer, 0]),
        [*answer[:4], *thinking(thought, answer[4:]), 0],
        [*thought, CLOSE, *answer, 0],
        [*toy.encode("w41 w42. w43 w44 w45."), 0],
    ]
    prompts = [[22], [22], [22, OPEN], [23]]
    made = Corruptor(responses, [0, 0, 0, 1], TABLE, toy.encode, decode, prompts, (OPEN, CLOSE))
    damaged = made.corrupt(index, kind, random.Random(seed))
    if damaged is None:
        return
    assert damaged.ids != responses[index]
    kept = outside(prompts[index], damaged.ids, OPEN, CLOSE).tolist()
    assert all(free for free, hurt in zip(kept, damaged.damaged, strict=True) if hurt)
    closed = [token for token, free in zip(damaged.ids, kept, strict=True) if not free]
    free = outside(prompts[index], responses[index], OPEN, CLOSE).tolist()
    whole = [token for token, open in zip(responses[index], free, strict=True) if not open]
    # A response may break off before it thinks.
    assert closed == whole or (kind == "truncation" and not closed)


def test_what_is_not_anchored_at_all_is_left_out() -> None:
    answer = toy.encode("w1 w2.")
    lost, kept = [OPEN, *answer, 0], thinking(answer, answer)
    closed = thinking(answer, [0])  # and then said nothing
    items = [
        FitMaterial([22], [kept, lost], [lost, kept, closed]),
        FitMaterial([25], [closed, kept], [kept]),
        FitMaterial([23], [lost, kept], [kept]),
        FitMaterial([24], [kept], []),
    ]
    left = anchored_material(items, TABLE, (OPEN, CLOSE))
    assert left == [FitMaterial([22], [kept], [kept]), FitMaterial([24], [kept], [])]
    assert anchored_material(items, TABLE, None) == items
    with pytest.raises(ValueError, match="^material: expected expert responses with a part that is anchored"):
        anchored_material(items[1:3], TABLE, (OPEN, CLOSE))


def test_a_reward_model_reads_what_is_left() -> None:
    asked: list[Comparison] = []

    def scores(comparisons) -> list[float]:
        asked.extend(comparisons)
        return [float(len(set(c.reference.split()) & set(c.response.split()))) for c in comparisons]

    material = material_with_thoughts(20, (0, 1))
    how = FitSettings(kind="cosine", granularity="response", delimiters=(OPEN, CLOSE))
    view = RewardModelView(Origin("a", -1, "b"), scores, decode)
    frozen, card = calibrate_reward_model(view, material, how, toy.encode, decode, TABLE, 7)
    assert not any("think" in text for c in asked for text in (c.reference, c.response))
    _, held_out = split_material(without_delimited(material, TABLE, (OPEN, CLOSE)), replace(how, delimiters=None), 7)
    own = [scores([Comparison("", decode(i.experts[0]), decode(r))])[0] for i in held_out for r in i.rollouts]
    assert frozen.mean == pytest.approx(statistics.mean(own))
    assert examine_reward_model(frozen, view, material, how, toy.encode, decode, TABLE, 7) == (
        frozen.mean,
        frozen.std,
        card,
    )
