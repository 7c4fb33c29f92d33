"""Kind "polar" from recipe to policy: calibrated within a run, used by training, refreshed, and applied to files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from reward_models import reward_model
from runs import figures, rl_table, same, start_table, weights

from aapa.discriminator import load
from aapa.discriminator.store import load_card, read_record
from aapa.engine.cli import main
from aapa.engine.metrics import read_metrics, read_samples
from aapa.engine.recipe import parse_recipe
from aapa.engine.tasks import load_task

pytestmark = pytest.mark.usefixtures("own_reward")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("judge"), longest=1024)


def polar_table(start: Path, judge: Path, steps: int = 3, **anchor) -> dict:
    table = rl_table(start, 0.5, steps=steps)
    table["discriminator"] = {
        "kind": "polar",
        "reward_model": str(judge),
        "fit_after": "start",
        "prompts": 30,
        "rollouts_per_prompt": 2,
    }
    table["stages"][0]["objective"]["anchor"] |= {"granularity": "response"} | anchor
    return table


def recipe(table: dict, folder: Path) -> Path:
    file = folder / f"{table['name']}.toml"
    file.write_text(parse_recipe(table).to_toml())
    return file


def by_hand(judge: Path, prompt: str, expert: str, response: str) -> float:
    """transformers' own scalar."""
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    text = f"{prompt}{expert}<|reward|>{prompt}{response}[UNUSED_TOKEN_130]"
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
    return logits.item()


@pytest.fixture(scope="module")
def run(start, judge, tmp_path_factory) -> Path:
    """A run that was calibrated and trained through the command line."""
    folder = tmp_path_factory.mktemp("polar")
    table = polar_table(start, judge)
    table["stages"][0]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    assert main(["train", str(recipe(table, folder)), "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_is_calibrated_anchored_and_reported(run, judge):
    frozen = load(run / "discriminator")
    assert (frozen.kind, frozen.granularity, frozen.tensors(), frozen.scalars()) == ("polar", "response", {}, {})
    assert (run / "discriminator" / read_record(run / "discriminator")["trunk"]["directory"]).resolve() == judge
    card = load_card(run / "discriminator")
    assert card is not None
    assert card.counts["held_out_prompts"] == 6
    assert card.counts["leave_one_out"] == 0, "a response is never judged beside itself"
    assert card.counts["rollouts"] == 12
    assert card.counts["damaged"] > 0
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert len(rows) == 3
    assert all(row["loss/adv"] != 0 and sum(row["anchor/histogram"]) == 8 for row in rows)
    assert (run / "report.html").is_file()


def test_samples_carry_transformers_own_score_calibrated(run, judge):
    frozen = load(run / "discriminator")
    samples = [s for s in read_samples(run) if s.sentences and s.response]
    assert samples
    for sample in samples[:4]:
        assert [sentence.text for sentence in sample.sentences] == [sample.response]
        raw = by_hand(judge, sample.prompt, sample.expert, sample.response)
        clipped = max(-3.0, min(3.0, (raw - frozen.mean) / frozen.std))
        assert sample.sentences[0].score == pytest.approx(clipped, abs=1e-3)


def test_a_discriminator_is_brought_along_and_the_run_repeats(start, run, judge, tmp_path):
    table = polar_table(start, judge)
    table["discriminator"] = {"source": str(run / "discriminator")}
    for name in ("one", "two"):
        assert main(["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / name)]) == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    table = rl_table(start, None, steps=3)
    assert main(["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / "plain")]) == 0
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "plain"))


def test_spans_with_kl_and_rewards_train_too(start, run, judge, tmp_path):
    """The KL reference has a forward pass of its own; parts between delimiters are not judged."""
    table = polar_table(start, judge, steps=2, span=["a", "e"], mode="reward")
    table["stages"][0]["objective"]["beta"] = 0.1
    assert main(["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / "run")]) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert all("time/reference" in row for row in rows)


def test_a_moved_reward_model_is_found_by_its_key_and_a_changed_one_refused(start, run, judge, tmp_path, capsys):
    moved = tmp_path / "some" / "where" / "else"
    shutil.copytree(run / "discriminator", moved)
    table = polar_table(start, judge, steps=1)
    table["discriminator"] = {"source": str(moved), "kind": "polar"}
    words = ["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / "run")]
    assert main(words) == 2
    assert "discriminator.reward_model: expected a Hugging Face directory" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")
    other = reward_model(tmp_path / "other", seed=1, longest=1024)
    assert main([*words, "--discriminator.reward_model", str(other)]) == 2
    assert "expected the weights and configuration" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")
    assert main([*words, "--discriminator.reward_model", str(judge)]) == 0


def test_fit_and_refresh_outside_of_a_run(start, judge, tmp_path, capsys):
    table = start_table() | {"name": "polar"}
    table["discriminator"] = {
        "kind": "polar",
        "reward_model": str(judge),
        "fit_after": "sft",
        "prompts": 30,
        "rollouts_per_prompt": 2,
    }
    table["stages"].append(polar_table(start, judge)["stages"][0])
    table["stages"][-1]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    copy = tmp_path / "run"
    shutil.copytree(start, copy)
    shutil.rmtree(copy / "discriminator")
    words = [str(recipe(table, tmp_path)), "--run", str(copy)]
    assert main(["discriminator", "fit", *words]) == 0
    assert "held-out AUC" in capsys.readouterr().out
    assert main(["discriminator", "refresh", *words]) == 0
    out = capsys.readouterr().out
    assert "experts: 80 fit the reward model" in out
    assert (
        "drift on 6 of 6 prompts: AUC +0.000, against genuine rollouts +0.000; mean score +0.00 σ, spread ×1.00" in out
    )
    # A reward model has no tokens by which texts in a file could be cut.
    table["stages"][-1]["objective"]["anchor"]["span"] = ["a", "e"]
    words = [str(recipe(table, tmp_path)), "--run", str(copy)]
    assert main(["discriminator", "fit", *words, "--output", str(tmp_path / "cut")]) == 0
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "p", "response": "r", "expert": "e"}))
    assert main(["discriminator", "score", "--discriminator", str(tmp_path / "cut"), "--data", str(data)]) == 2
    assert "--discriminator: expected one that was fitted without anchor.span" in capsys.readouterr().err


def test_scores_of_a_file(run, judge, tmp_path, capsys):
    example = load_task("mini-if").examples("dev")[0]
    data = tmp_path / "data.jsonl"
    rows = [
        {"prompt": example.prompt, "response": response, "expert": example.experts[0]}
        for response in (example.experts[1], "the the the. Xylophone!", "")
    ]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert main(["discriminator", "score", "--discriminator", str(run / "discriminator"), "--data", str(data)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    frozen = load(run / "discriminator")
    for row, found in zip(rows, printed, strict=True):
        raw = by_hand(judge, row["prompt"], row["expert"], row["response"])
        assert found["score"] == pytest.approx((raw - frozen.mean) / frozen.std, abs=1e-3)
        assert found["sentences"] == [{"text": row["response"], "score": found["score"]}]


def test_experts_too_long_for_the_reward_model_are_told_before_the_first_step(start, run, tmp_path, capsys):
    table = polar_table(start, reward_model(tmp_path / "short", longest=60), steps=1)
    assert main(["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / "run")]) == 2
    assert "discriminator.reward_model: expected at most 60 tokens" in capsys.readouterr().err


def test_a_reward_model_without_separators_is_refused_before_the_first_stage(start, tmp_path, capsys):
    table = polar_table(start, reward_model(tmp_path / "bare", separators=()))
    assert main(["train", str(recipe(table, tmp_path)), "--output", str(tmp_path / "run")]) == 2
    assert "discriminator.reward_model: expected a tokenizer with the token <|reward|>" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [2, 1], ids=["pipeline", "data"])
def test_two_processes_calibrate_and_train_as_one_does(start, judge, tmp_path, pipeline):
    """The reward model is on each replica's leader; every rank has its scores."""
    table = polar_table(start, judge)
    table["stages"][0]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    table["stages"][0]["objective"]["updates_per_rollout"] = 1
    words = ["train", str(recipe(table, tmp_path)), "--output"]
    assert main([*words, str(tmp_path / "one")]) == 0
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "aapa.engine", *words, str(tmp_path / "two"), "--parallel.pipeline", str(pipeline)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    one, two = (load(tmp_path / name / "discriminator") for name in ("one", "two"))
    assert (two.mean, two.std) == pytest.approx((one.mean, one.std), rel=1e-4)
    assert two.origin == one.origin
    want, got = ([r for r in read_metrics(tmp_path / name) if r["kind"] == "train"] for name in ("one", "two"))
    assert len(got) == len(want) == 3
    for name in ("anchor/mean", "loss/adv", "reward/mean"):
        assert got[0][name] == pytest.approx(want[0][name], rel=1e-3, abs=1e-4), name
