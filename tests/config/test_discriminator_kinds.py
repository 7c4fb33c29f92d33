"""What each kind of discriminator needs in a recipe, and what it must not be given."""

from __future__ import annotations

from pathlib import Path

import pytest

from aapa.engine.recipe import parse_recipe
from aapa.engine.recipe.checks import environment_problems

KIND, MODEL = ("discriminator.kind", "polar"), ("discriminator.reward_model", "judge")
ELSEWHERE = "the directory of a frozen discriminator, for kind 'mine:Nearest' is fitted elsewhere"
RESPONSE = ("stages.2.objective.anchor.granularity", "response")


def changes(*pairs):
    return [item for pair in pairs for item in pair]


def test_a_reward_model_judges_responses(problems, valid):
    assert problems(*changes(KIND, MODEL, RESPONSE)) == []
    # Brought along, its directory is known.
    brought = [("discriminator.reward_model", ...), ("discriminator.fit_after", ...), ("discriminator.source", "d")]
    assert problems(*changes(KIND, RESPONSE, *brought)) == []
    # A resolved recipe, with every default written out, reads back.
    recipe = parse_recipe(valid)
    assert (recipe.discriminator.kind, recipe.discriminator.reward_model) == ("polar", None)
    assert parse_recipe(recipe.table()) == recipe


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [KIND, MODEL],
            f"{RESPONSE[0]}: expected 'response' for a discriminator of kind 'polar', got 'sentence'",
        ),
        ([KIND, RESPONSE], "discriminator.reward_model: expected a directory for kind 'polar', got nothing"),
        (
            [KIND, MODEL, RESPONSE, ("discriminator.trunk", "stage_start")],
            "discriminator.trunk: expected nothing for kind 'polar', which has no trunk, got 'stage_start'",
        ),
        (
            [KIND, MODEL, RESPONSE, ("discriminator.layer", 2)],
            "discriminator.layer: expected nothing for kind 'polar', which has no trunk, got 2",
        ),
        (
            [KIND, MODEL, RESPONSE, ("discriminator.logprob_features", True)],
            "discriminator.logprob_features: expected nothing for kind 'polar', which has no trunk, got true",
        ),
        ([MODEL], "discriminator.reward_model: expected nothing for kind 'sentence', got 'judge'"),
        (
            [("discriminator.kind", "polr")],
            "discriminator.kind: expected a known name, perhaps 'polar', or 'package.module:Class', got 'polr'",
        ),
        (
            [("discriminator.kind", "mine:Nearest")],
            f"discriminator.source: expected {ELSEWHERE}, got nothing",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(problems, pairs, message):
    assert problems(*changes(*pairs)) == [f"r.toml: {message}"]


def test_what_is_named_is_looked_up(valid, tmp_path: Path):
    valid["discriminator"] |= {"kind": "polar", "reward_model": str(tmp_path)}
    valid["stages"][2]["objective"]["anchor"]["granularity"] = "response"
    found = [str(problem) for problem in environment_problems(parse_recipe(valid))]
    assert len(found) == 1
    assert "expected a directory holding config.json" in found[0]
    (tmp_path / "config.json").write_text("{}")
    assert environment_problems(parse_recipe(valid)) == []
    valid["discriminator"] = {"kind": "no_such:Kind", "source": str(tmp_path)}
    found = [str(problem) for problem in environment_problems(parse_recipe(valid))]
    assert len(found) == 1
    assert "no_such:Kind" in found[0]
