"""Whole runs: what λ = 0 changes, what a resume changes, what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from runs import DATA, figures, rl_table, same, start_table, weights

from aapa.engine.errors import Interrupted, UserError
from aapa.engine.metrics import read_metrics, read_samples
from aapa.engine.recipe import parse_recipe
from aapa.engine.run_output import RECIPE_FILE, WRITTEN
from aapa.engine.trainer import train

pytestmark = pytest.mark.usefixtures("own_reward")


def test_lambda_zero_is_bit_identical_to_plain_grpo_and_never_scores(start, tmp_path, monkeypatch):
    from aapa.engine.scoring import SentenceScorer

    train(parse_recipe(rl_table(start, None)), tmp_path / "plain")
    calls = []
    monkeypatch.setattr(SentenceScorer, "score", lambda *args, **kwargs: calls.append(args))
    train(parse_recipe(rl_table(start, 0.0)), tmp_path / "zero")
    assert not calls, "no scoring may run at λ = 0"
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))
    assert not same(weights(tmp_path / "plain"), weights(start)), "20 steps must move the policy"
    rows = [row for row in read_metrics(tmp_path / "zero") if row["kind"] == "train"]
    assert len(rows) == 20
    assert not any("anchor/mean" in row or "loss/adv" in row for row in rows)
    # updates_per_rollout = 2: the second update of a rollout sees ratios that are not 1
    assert any(row["policy/max_log_ratio"] > 1e-4 for row in rows)


def test_lambda_above_zero_scores_and_changes_the_weights(start, tmp_path):
    train(parse_recipe(rl_table(start, None, steps=3)), tmp_path / "plain")
    train(parse_recipe(rl_table(start, 1.0, steps=3)), tmp_path / "anchored")
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "anchored"))
    rows = [row for row in read_metrics(tmp_path / "anchored") if row["kind"] == "train"]
    assert all(sum(row["anchor/histogram"]) > 0 for row in rows)
    assert all(row["loss/adv"] != 0 for row in rows)
    samples = read_samples(tmp_path / "anchored")
    assert any(sentence.score is not None for sample in samples for sentence in sample.sentences)


@pytest.mark.parametrize("extra", [{"beta": 0.1}, {"epochs_per_rollout": 2}], ids=["kl", "epochs"])
def test_a_run_stopped_by_sigterm_goes_on_bit_identically(start, tmp_path, extra):
    table = rl_table(start, 0.5, steps=6, **extra)
    table["checkpoint"] = {"every": 2}
    train(parse_recipe(table), tmp_path / "whole")
    table["stages"][0]["rewards"][0]["function"] = "reward_of_tests:stop_at_third"
    with pytest.raises(Interrupted, match="saved step 3"):
        train(parse_recipe(table), tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "final").exists()
    train(parse_recipe(table), tmp_path / "stopped")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert figures(tmp_path / "whole") == figures(tmp_path / "stopped")
    assert len(read_samples(tmp_path / "stopped")) == len(read_samples(tmp_path / "whole"))


def test_a_run_resumes_within_and_between_stages(tmp_path):
    """Cut after every checkpoint of a run with a discriminator fit between two stages."""
    table = start_table()
    table["stages"][0]["steps"] = 4
    table["checkpoint"] = {"every": 2, "keep": 20}
    train(parse_recipe(table), tmp_path / "whole")
    saved = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(saved) == 4  # two in the middle of a stage, two at their ends
    for cut in range(1, 4):
        part = tmp_path / f"part{cut}"
        shutil.copytree(tmp_path / "whole", part)
        for checkpoint in sorted((part / "checkpoints").iterdir())[cut:]:
            shutil.rmtree(checkpoint)
        shutil.rmtree(part / "final")
        train(parse_recipe(table), part)
        assert same(weights(tmp_path / "whole"), weights(part))
        assert figures(tmp_path / "whole") == figures(part)
        for file in ("discriminator.safetensors", "discriminator.json"):
            whole, again = (place / "discriminator" / file for place in (tmp_path / "whole", part))
            assert whole.read_bytes() == again.read_bytes()


def test_final_loads_in_transformers_generates_and_has_the_policys_logits(start, tmp_path):
    from aapa.batch import Sequence
    from aapa.engine.policy import parallel as groups
    from aapa.engine.policy.megatron import MegatronPolicy
    from aapa.packing import pack

    model = AutoModelForCausalLM.from_pretrained(start / "final")
    tokenizer = AutoTokenizer.from_pretrained(start / "final")
    prompt = tokenizer("About tea: no commas.\n\n", return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert out.shape[1] > prompt.shape[1]
    parallel = groups.start()
    try:
        policy = MegatronPolicy(model.config, parallel, torch.float32)
        policy.load_weights(weights(start))
        logits = model(out).logits[0, :-1]
        # Every log-prob of every vocabulary entry, by asking for each as the target: equal log-softmax of equal logits.
        found = []
        for token in range(0, model.config.vocab_size, 7):
            probe = Sequence(out[0, :1], torch.full((out.shape[1] - 1,), token), "expert")
            (batch,) = pack([probe], 1000)
            batch.token_T = out[0]
            found.append(policy.logprobs([batch])[0][0][:-1])
        expected = logits.log_softmax(-1)[:, ::7]
        torch.testing.assert_close(torch.stack(found, 1), expected, rtol=0, atol=1e-5)
    finally:
        groups.stop()


def test_the_run_directory_holds_what_a_reader_needs(start):
    summary = json.loads((start / "summary.json").read_text())
    assert [row["stage"] for row in summary] == ["base", "sft"]
    for row in summary:
        assert {
            "name",
            "seed",
            "pass_rate_ci",
            "in_language",
            "true_quality",
            "proxy_reward",
            "length_ratio",
        } <= set(row)
        assert row["pass_rate_ci"][0] <= row["pass_rate"] <= row["pass_rate_ci"][1]
    rows = read_metrics(start)
    assert sum(row["kind"] == "train" for row in rows) == 34
    base = [row["loss/sft"] for row in rows if row["kind"] == "train" and row["stage"] == "base"]
    assert base[-1] < 0.8 * base[0]
    assert any((start / "tensorboard").iterdir())
    assert {path.name for path in start.iterdir()} <= {RECIPE_FILE, *WRITTEN}
    for name in (
        "report.html",
        "curves.png",
        "recipe.toml",
        "samples.jsonl",
        "discriminator/discriminator.json",
    ):
        assert (start / name).stat().st_size > 100


def test_a_changed_discriminator_is_refused(start, tmp_path):
    table = rl_table(start, 1.0, steps=2)
    copy = tmp_path / "discriminator"
    shutil.copytree(start / "discriminator", copy)
    record = json.loads((copy / "discriminator.json").read_text())
    record["trunk"]["directory"] = os.path.relpath(start / "stages" / "base", copy)
    table["discriminator"]["source"] = str(copy)
    (copy / "discriminator.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="changed file"):
        train(parse_recipe(table), tmp_path / "run")


def test_another_recipe_in_the_same_directory_is_refused(start):
    table = start_table()
    table["stages"][1]["learning_rate"] = 5e-3
    with pytest.raises(
        UserError, match=r"stages\.1\.learning_rate: expected 0\.001 as in the run directory, got 0\.005"
    ):
        train(parse_recipe(table), start)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(start, tmp_path, capsys):
    table = rl_table(start, None, steps=4)
    table["checkpoint"] = {"every": 2}
    train(parse_recipe(table), tmp_path / "run")
    expected = weights(tmp_path / "run")
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    file = last / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    shutil.rmtree(tmp_path / "run" / "final")
    train(parse_recipe(table), tmp_path / "run")
    assert "checkpoint: expected the SHA-256 of the manifest for" in capsys.readouterr().out
    assert same(weights(tmp_path / "run"), expected)


def test_only_damaged_checkpoints_end_the_run_and_leave_its_log(start, tmp_path):
    table = rl_table(start, None, steps=2)
    train(parse_recipe(table), tmp_path / "run")
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="expected a valid checkpoint, got damaged ones only"):
        train(parse_recipe(table), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log


def test_prompts_drawn_twice_in_a_step_get_rollouts_of_their_own(start, tmp_path):
    """A task of two prompts and four per step: every rollout of the step has its own random numbers."""
    from aapa.engine.rollout.transformers import TransformersEngine

    seeds: list[int] = []
    plain = TransformersEngine.generate

    def spy(self, prompts, row_seeds, **settings):
        seeds.extend(row_seeds)
        return plain(self, prompts, row_seeds, **settings)

    table = rl_table(start, None, steps=1)
    table["data"] = {"options": DATA["options"] | {"train_size": 2}}
    table["stages"][0]["prompts_per_step"] = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", spy)
        train(parse_recipe(table), tmp_path / "run")
    assert len(set(seeds)) == 16 + 4 * 4  # two evaluations with the same seeds, and four groups of four


def test_a_sft_lambda_zero_is_bit_identical_to_sft(start, tmp_path):
    def table(weight: float | None) -> dict:
        made = rl_table(start, weight, steps=3)
        anchor = {} if weight is None else {"anchor": {"weight": weight}}
        made["stages"][0] |= {"rewards": [], "objective": {"kind": "sft"} | anchor}
        return made

    for name, weight in (("plain", None), ("zero", 0.0), ("anchored", 0.5)):
        train(parse_recipe(table(weight)), tmp_path / name)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "anchored"))


def test_signals_are_given_back(start, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(parse_recipe(rl_table(start, None, steps=1)), tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before
