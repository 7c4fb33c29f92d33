"""The demonstration, cut down to seconds: the same processes, files and table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from aapa.engine import demo
from aapa.engine.errors import TrainingFault

pytestmark = pytest.mark.slow

SIZES = (
    "--data.options",
    "{ train_size = 60, dev_size = 16, test_size = 16, held_out_size = 8, corpus_size = 100 }",
    "--evaluation.prompts",
    "8",
    "--evaluation.final_prompts",
    "8",
)
START = (
    *SIZES,
    *("--discriminator.prompts", "20", "--discriminator.steps", "10"),
    *("--stages.base.steps", "4", "--stages.base.warmup_steps", "0", "--stages.base.prompts_per_step", "8"),
    *("--stages.sft.steps", "2", "--stages.sft.warmup_steps", "0", "--stages.sft.prompts_per_step", "4"),
)
ARM = (*SIZES, "--stages.rl.steps", "2", "--stages.rl.warmup_steps", "0", "--stages.rl.prompts_per_step", "4")


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(demo, "START", replace(demo.START, overrides=(*demo.START.overrides, *START)))
    arms = tuple(replace(arm, overrides=(*arm.overrides, *ARM)) for arm in demo.ARMS)
    monkeypatch.setattr(demo, "ARMS", arms)


def test_the_demo_compares_both_arms_and_goes_on_where_it_stopped(small, tmp_path, capsys):
    demo.run_demo(tmp_path, seeds=[1, 2])
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["name"], row["seed"], row["stage"]) for row in rows] == [
        ("demo-start", 0, "base"),
        ("demo-start", 0, "sft"),
        ("grpo", 1, "rl"),
        ("grpo", 2, "rl"),
        ("a-grpo", 1, "rl"),
        ("a-grpo", 2, "rl"),
    ]
    assert rows[1]["expert_logprob_drift"] == 0.0
    assert rows[0]["expert_logprob_drift"] < 0 < len({row["expert_logprob"] for row in rows[1:]})
    printed = capsys.readouterr().out
    assert "constraints met" in printed
    assert "a-grpo against grpo, pass_rate" in printed
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final").config.num_hidden_layers == 3
    for name in ("report.html", "curves.png", "metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 1000
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/checkpoints/*/state.json")}
    assert stamps
    demo.run_demo(tmp_path, seeds=[1, 2])
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "a finished demo trains nothing again"


def test_a_training_process_that_fails_is_shown(small, tmp_path, monkeypatch):
    broken = replace(demo.START, overrides=(*demo.START.overrides, "--stages.sft.learning_rate", "-1"))
    monkeypatch.setattr(demo, "START", broken)
    with pytest.raises(TrainingFault, match=r"start: expected the training to succeed, got exit code") as caught:
        demo.run_demo(tmp_path, seeds=[1])
    assert "learning_rate" in str(caught.value)
