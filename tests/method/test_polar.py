"""Reward models as discriminators: template, calibration and figures, against sums written out by hand."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import (
    Comparison,
    FitMaterial,
    FitSettings,
    Origin,
    PolarDiscriminator,
    RewardModelView,
    calibrate_reward_model,
    examine_reward_model,
    freeze,
    load,
)
from aapa.discriminator.fit import split_material
from aapa.sentences import build_sentence_table

WORDS = 30
VOCABULARY = {
    "<eos>": 0,
    ".": 1,
    **{f" {c}{i}": i + (2 if c == "w" else 2 + WORDS) for c in "wW" for i in range(WORDS)},
}
TEXTS = {index: text for text, index in VOCABULARY.items()}
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(VOCABULARY, ".")), eos_token="<eos>")
)
SETTINGS = FitSettings(kind="cosine", granularity="response", held_out=0.4)
ORIGIN = Origin("model", -1, "tokenizer")


def encode(text: str) -> list[int]:
    return [VOCABULARY["." if piece == "." else f" {piece}"] for piece in text.replace(".", " .").split()]


def text(ids: list[int]) -> str:
    return "".join(TEXTS[i] for i in ids if i)


def shared_words(comparison: Comparison) -> float:
    """A judge that counts words that reference and response share, and knows the prompt."""
    response, reference = (set(part.replace(".", "").split()) for part in (comparison.response, comparison.reference))
    return len(response & reference) - 0.1 * len(response) + 0.01 * len(comparison.prompt)


class Judge:
    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def __call__(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.asked += comparisons
        return [shared_words(c) for c in comparisons]


def material(prompts: int = 20, experts: int = 2) -> list[FitMaterial]:
    rng = random.Random(0)

    def response(first: int) -> list[int]:
        return [*(2 + (first + rng.randrange(8)) % WORDS for _ in range(rng.randint(4, 9))), 1, 0]

    return [
        FitMaterial([2 + p % WORDS], [response(p) for _ in range(experts)], [response(p + 3) for _ in range(3)])
        for p in range(prompts)
    ]


def calibrate(items: list[FitMaterial], settings: FitSettings = SETTINGS, judge: Judge | None = None):
    view = RewardModelView(ORIGIN, judge or Judge(), text)
    return calibrate_reward_model(view, items, settings, encode, text, TABLE, 7)


def test_the_template_is_prompt_and_reference_then_prompt_and_response() -> None:
    assert Comparison("p", "r", "o").text() == "pr<|reward|>po[UNUSED_TOKEN_130]"
    assert Comparison("", "", "").text() == "<|reward|>[UNUSED_TOKEN_130]"


@pytest.mark.parametrize(
    "forged", ["<|reward|>", "[UNUSED_TOKEN_130]", "<|rew<|reward|>ard|>", "[UNUSED_T<|reward|>OKEN_130]"]
)
def test_separators_within_a_text_are_taken_out(forged: str) -> None:
    assert Comparison("p", f"r{forged}", f"o{forged}!").text() == "pr<|reward|>po![UNUSED_TOKEN_130]"
    # Also one that begins in the prompt.
    assert Comparison("p<|re", "r", "ward|>o").text() == "p<|rer<|reward|>po[UNUSED_TOKEN_130]"


def test_calibration_is_that_of_the_held_out_rollouts_beside_the_first_expert() -> None:
    items = material()
    frozen, card = calibrate(items)
    _, held_out = split_material(items, SETTINGS, 7)
    scores = [
        shared_words(Comparison(text(item.prompt), text(item.experts[0]), text(rollout)))
        for item in held_out
        for rollout in item.rollouts
    ]
    assert frozen.mean == pytest.approx(statistics.mean(scores), rel=1e-12)
    assert frozen.std == pytest.approx(statistics.stdev(scores), rel=1e-12)
    assert (frozen.kind, frozen.granularity, frozen.origin) == ("polar", "response", ORIGIN)
    saturated = [abs(score - frozen.mean) / frozen.std > 3 for score in scores]
    assert card.saturation == pytest.approx(sum(saturated) / len(saturated))
    positives = [
        shared_words(Comparison(text(item.prompt), text(item.experts[0]), text(item.experts[1]))) for item in held_out
    ]
    wins = [(p > n) + 0.5 * (p == n) for p in positives for n in scores]
    assert card.rollouts == pytest.approx(sum(wins) / len(wins), rel=1e-12)
    assert card.counts["positives"] == len(held_out) == card.counts["other_prompts"]
    assert card.counts["damaged"] > 0


def test_an_experts_answer_to_another_prompt_is_judged_as_one_to_this_prompt() -> None:
    judge = Judge()
    items = material()
    calibrate(items, judge=judge)
    _, held_out = split_material(items, SETTINGS, 7)
    for item, following in zip(held_out, held_out[1:] + held_out[:1], strict=True):
        assert Comparison(text(item.prompt), text(item.experts[0]), text(following.experts[0])) in judge.asked


def test_no_comparison_is_made_twice_and_none_is_with_itself() -> None:
    judge = Judge()
    calibrate(material(), judge=judge)
    assert len(judge.asked) == len(set(judge.asked))
    references = {text(item.experts[0]) for item in material()}
    assert {c.reference for c in judge.asked} <= references


def test_a_second_look_gives_the_same_figures_and_a_changed_expert_others() -> None:
    items = material()
    frozen, card = calibrate(items)
    view = RewardModelView(ORIGIN, Judge(), text)
    mean, std, again = examine_reward_model(frozen, view, items, SETTINGS, encode, text, TABLE, 7)
    assert (mean, std, again) == (frozen.mean, frozen.std, card)
    changed = [replace(item, experts=[item.experts[0][2:], *item.experts[1:]]) for item in items]
    assert examine_reward_model(frozen, view, changed, SETTINGS, encode, text, TABLE, 7)[0] != frozen.mean


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        (material(), replace(SETTINGS, granularity="sentence"), "granularity: expected 'response' for kind 'polar'"),
        (material(3), SETTINGS, "material: expected 2 prompts or more on either side"),
        ([replace(m, rollouts=[]) for m in material()], SETTINGS, "material: expected 2 sentences or more of held-out"),
    ],
)
def test_what_cannot_calibrate_is_refused(items, settings, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        calibrate(items, settings)


def test_a_judge_that_is_always_of_one_opinion_cannot_be_calibrated() -> None:
    view = RewardModelView(ORIGIN, lambda comparisons: [1.0] * len(comparisons), text)
    with pytest.raises(ValueError, match="expected held-out rollouts whose scores vary"):
        calibrate_reward_model(view, material(), SETTINGS, encode, text, TABLE, 7)


def test_experts_without_a_second_response_leave_figures_open_but_calibrate() -> None:
    frozen, card = calibrate(material(experts=1))
    assert frozen.std > 0
    assert card.auc != card.auc
    assert card.counts["positives"] == 0


def test_it_is_stored_and_every_part_is_under_its_hash(tmp_path: Path) -> None:
    frozen, card = calibrate(material())
    freeze(frozen, tmp_path, trunk={"directory": "../judge"}, card=card)
    assert load(tmp_path, frozen.hash) == frozen
    others = [
        replace(frozen, mean=frozen.mean + 1e-9),
        replace(frozen, std=frozen.std + 1e-9),
        *(
            replace(frozen, origin=replace(ORIGIN, **{field: value}))
            for field, value in (("trunk", "x"), ("table", "y"))
        ),
    ]
    assert len({frozen.hash, *(other.hash for other in others)}) == 5
    with pytest.raises(ValueError, match="expected discriminator"):
        load(tmp_path, others[0].hash)
    with pytest.raises(ValueError, match="granularity: expected 'response'"):
        PolarDiscriminator(0.0, 1.0, ORIGIN, "sentence")
