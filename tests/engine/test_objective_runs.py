"""Whole runs of the objectives, of one's own objective, and of the rules that end a stage."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runs import figures, rl_table, same, weights

from aapa.engine.errors import UserError
from aapa.engine.metrics import read_metrics
from aapa.engine.recipe import RecipeError, parse_recipe
from aapa.engine.trainer import train

pytestmark = pytest.mark.usefixtures("own_reward")
MU = {"kind": "cosine", "start": 0.5, "end": 0.1, "steps": 4, "warmup": 2}


def table_of(start: Path, kind: str, weight: float | None = None, steps: int = 3, **objective) -> dict:
    table = rl_table(start, weight, steps)
    changes = {"kind": kind} | objective
    table["stages"][0]["objective"] |= changes
    return table


def train_rows(directory: Path) -> list[dict]:
    return [row for row in read_metrics(directory) if row["kind"] == "train"]


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ({"ratio_level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}, ["policy/clip_fraction_high"]),
        ({"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0}, ["policy/ratio"]),
        ({"delta": 2.0, "beta": 0.1, "kl": "k1"}, ["policy/kl_ref", "loss/kl"]),
        ({"correction": "sequence_mask", "correction_max": 1.0}, ["rollout/correction", "rollout/correction_masked"]),
        ({"correction": "token_truncate", "updates_per_rollout": 1}, ["rollout/prob_error", "rollout/max_prob_error"]),
        ({"mask_truncated": True, "overlong_buffer": 6}, ["response/truncated"]),
        ({"dynamic_sampling": "auto", "dynamic_sampling_rounds": 3}, ["sampling/rounds", "sampling/zero_variance"]),
        ({"aggregation": "dr_grpo", "max_response_length": 12, "scale": "none"}, ["policy/entropy"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_train_and_log_their_figures(start, tmp_path, objective, names):
    train(parse_recipe(table_of(start, "grpo", **objective)), tmp_path / "run")
    rows = train_rows(tmp_path / "run")
    for name in names:
        assert all(math.isfinite(row[name]) for row in rows), name
    assert not same(weights(start), weights(tmp_path / "run"))


def test_the_engines_logprobs_are_the_trainers(start, tmp_path):
    """So the importance correction of the engine that shares the trainer's arithmetic is 1."""
    train(parse_recipe(table_of(start, "grpo", correction="sequence_truncate")), tmp_path / "run")
    for row in train_rows(tmp_path / "run"):
        assert row["rollout/max_prob_error"] < 1e-4
        assert row["rollout/correction"] == pytest.approx(1.0, abs=1e-3)


def test_chord_mixes_both_losses_by_its_schedule(start, tmp_path):
    train(parse_recipe(table_of(start, "chord", steps=5, mu=MU, expert_batch_size=6)), tmp_path / "run")
    rows = train_rows(tmp_path / "run")
    assert [row["chord/mu"] for row in rows] == pytest.approx([0.0, 0.25, 0.5, 0.5 - 0.4 * (1 - 0.5**0.5) / 2, 0.3])
    assert "loss/sft" not in rows[0]  # mu is 0: no expert is drawn
    assert all(row["loss/sft"] > 0 and 0 < row["chord/phi"] <= 0.25 for row in rows[1:])
    assert all("loss/rl" in row for row in rows)


def test_chord_presets_and_lambda_zero(start, tmp_path):
    """A-CHORD at λ = 0 is CHORD bit for bit, and neither is GRPO."""
    made = {}
    for name, kind, weight in (
        ("plain", "chord-mu", None),
        ("zero", "chord-mu", 0.0),
        ("anchored", "chord-mu", 0.5),
        ("phi", "chord-phi", None),
        ("grpo", "grpo", None),
    ):
        train(parse_recipe(table_of(start, kind, weight, steps=2)), tmp_path / name)
        made[name] = weights(tmp_path / name)
    assert same(made["plain"], made["zero"])
    for one, other in (("plain", "anchored"), ("plain", "phi"), ("phi", "grpo")):
        assert not same(made[one], made[other])


@pytest.mark.parametrize(
    ("kind", "extra"), [("grpo", {"dynamic_sampling": "auto"}), ("chord", {"mu": MU, "expert_batch_size": 4})]
)
def test_a_resumed_run_draws_what_the_whole_one_draws(start, tmp_path, kind, extra):
    table = table_of(start, kind, steps=4, **extra)
    table["checkpoint"] = {"every": 2, "keep": 20}
    train(parse_recipe(table), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for checkpoint in sorted((tmp_path / "part" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    train(parse_recipe(table), tmp_path / "part")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "part"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "part")


def test_an_objective_of_ones_own_trains(start, tmp_path):
    table = table_of(start, "own_objective:Reinforce")
    table["stages"][0]["objective"] = {"kind": "own_objective:Reinforce", "group_size": 4, "bonus": 0.02}
    train(parse_recipe(table), tmp_path / "run")
    rows = train_rows(tmp_path / "run")
    assert all(row["loss/custom"] == row["loss/total"] for row in rows)
    assert all(row["policy/entropy"] > 0 and row["policy/ratio"] == 1.0 for row in rows)
    assert not same(weights(start), weights(tmp_path / "run"))
    table["stages"][0]["objective"]["bonuss"] = 1.0
    with pytest.raises(RecipeError, match=r"stages\.0\.objective\.bonuss: expected a known name, perhaps 'bonus'"):
        parse_recipe(table)
    table["stages"][0]["objective"] = {"kind": "tiny:Sequence"}
    with pytest.raises(RecipeError, match=r"stages\.0\.objective\.kind: expected a subclass of aapa\.Objective"):
        parse_recipe(table)


def test_a_stage_ends_when_its_metric_is_reached(start, tmp_path):
    table = table_of(start, "grpo", steps=6)
    table["stages"][0] |= {"evaluate_every": 2, "stop": {"metric": "truncated", "at_most": 1.0}}
    table["stages"].append(json.loads(json.dumps(table["stages"][0])) | {"name": "after", "steps": 3})
    del table["stages"][1]["stop"]
    train(parse_recipe(table), tmp_path / "run")
    assert [(row["stage"], row["step"]) for row in train_rows(tmp_path / "run")] == [
        ("rl", 1),
        ("rl", 2),
        ("after", 1),
        ("after", 2),
        ("after", 3),
    ]
    # A start that finds the checkpoint between the rule and the stage's last evaluation does not take a step more.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    first, *rest = sorted((tmp_path / "again" / "checkpoints").iterdir())
    for checkpoint in rest:
        shutil.rmtree(checkpoint)
    train(parse_recipe(table), tmp_path / "again")
    assert figures(tmp_path / "run") == figures(tmp_path / "again"), first
    assert same(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_a_stage_ends_with_its_best_policy(start, tmp_path):
    """The policy with the least likely experts comes first or later, but a destructive learning rate moves it."""
    table = table_of(start, "grpo", steps=6)
    table["stages"][0] |= {"learning_rate": 3e-2, "evaluate_every": 2, "best": {"metric": "expert_logprob"}}
    table["checkpoint"] = {"every": 3, "keep": 20}
    train(parse_recipe(table), tmp_path / "run")
    seen = {
        row["step"]: row["eval/expert_logprob"]
        for row in read_metrics(tmp_path / "run")
        if row["kind"] == "eval" and row["split"] == "dev"
    }
    assert sorted(seen) == [2, 4, 6]
    best = max(seen, key=seen.__getitem__)
    assert best != 6, "the learning rate must be destructive for the test to see a difference"
    short = table_of(start, "grpo", steps=best)
    short["stages"][0] |= {"learning_rate": 3e-2}
    train(parse_recipe(short), tmp_path / "short")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "short"))
    # Between evaluations the best so far comes out of the checkpoint.
    for checkpoint in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    expected = figures(tmp_path / "run")
    train(parse_recipe(table), tmp_path / "run")
    assert figures(tmp_path / "run") == expected
    assert same(weights(tmp_path / "run"), weights(tmp_path / "short"))


def test_rules_that_cannot_act_are_refused(start):
    table = table_of(start, "grpo")
    table["stages"][0] |= {"stop": {"at_least": 0.5, "at_most": 0.7}, "best": {"metric": "pass"}}
    with pytest.raises(RecipeError, match=r"best\.metric: expected 'pass_rate'"):
        parse_recipe(table)
    del table["stages"][0]["best"]
    with pytest.raises(RecipeError) as raised:
        parse_recipe(table)
    assert "stages.0.evaluate_every: expected 1 … 3 for stages.rl.stop, got nothing" in str(raised.value)
    assert "stages.0.stop: expected at_least or at_most, got both" in str(raised.value)
    table = table_of(start, "grpo", overlong_buffer=13)
    with pytest.raises(RecipeError, match=r"overlong_buffer: expected at most rollout\.max_new_tokens, 12, got 13"):
        parse_recipe(table)


def test_a_delimiter_that_is_no_token_is_refused(start, tmp_path):
    table = rl_table(start, 0.5, steps=1)
    table["stages"][0]["objective"]["anchor"]["span"] = ["<think>", "</think>"]
    with pytest.raises(
        UserError,
        match=r"stages\.0\.objective\.anchor\.span: expected delimiters of one token each, got \d+ for '<think>'",
    ):
        train(parse_recipe(table), tmp_path / "run")
