"""Synthetic run directories: three stages, logged and evaluated as a run does it, without a model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from aapa.engine.metrics import MetricsLog, Sample, SampleLog, ScoredSentence, histogram_counts
from aapa.engine.statistics import wilson_interval

STAGES = (("base", 60), ("sft", 50), ("rl", 80))
PROMPTS = 256

RECIPE = """
name = "{name}"
seed = {seed}
[data]
task = "mini-if"
[[stages]]
name = "sft"
steps = 50
learning_rate = 1e-3
[[stages]]
name = "rl"
steps = 80
learning_rate = 1e-4
objective = {{ kind = "grpo", anchor = {{ weight = {weight} }} }}
"""

MakeRun = Callable[..., Path]


def train_figures(stage: str, progress: float, weight: float, noise: random.Random) -> dict[str, object]:
    figures: dict[str, object] = {
        "loss/total": 6.2 * math.exp(-4 * progress) + 0.8 if stage == "base" else 0.5 - 0.2 * progress,
        "optim/grad_norm": abs(noise.gauss(1.2, 0.4)),
        "time/update": 0.31,
        "time/step": 0.36 if stage != "rl" else 1.43,
        "throughput/tokens_per_s": 5200.0,
    }
    if stage != "rl":
        return figures
    scores = [noise.gauss(-0.4 + weight * progress, 1.0) for _ in range(300)]
    return figures | {
        "reward/mean": 0.5 + 0.4 * progress / (1 + weight) + noise.gauss(0, 0.05),
        "anchor/mean": sum(scores) / len(scores),
        "anchor/histogram": histogram_counts(scores),
        "policy/entropy": 1.1 - 0.5 * progress / (1 + weight) + noise.gauss(0, 0.02),
        "policy/kl": 0.1 * progress + abs(noise.gauss(0, 0.01)),
        "response/length": 41 + 18 * progress / (1 + weight) + noise.gauss(0, 1),
        "time/rollout": 0.9,
        "time/reward": 0.05,
        "time/scoring": 0.12,
    }


def summary_row(name: str, stage: str, seed: int, rate: float, noise: random.Random) -> dict[str, object]:
    passed = round(rate * PROMPTS)
    return {
        "name": name,
        "stage": stage,
        "seed": seed,
        "split": "dev",
        "prompts": PROMPTS,
        "pass_rate": passed / PROMPTS,
        "pass_rate_ci": list(wilson_interval(passed, PROMPTS)),
        "in_language": 0.6 + noise.gauss(0, 0.02),
        "true_quality": 0.2 + noise.gauss(0, 0.02),
        "proxy_reward": 0.7,
        "length_ratio": 1.1,
        "distinct_2": 0.31,
        "expert_logprob_drift": -0.12,
        "tokens": 1_234_567,
        "seconds": 251.0,
    }


def samples_of(stage: str, noise: random.Random) -> list[Sample]:
    texts = (" The kettle sings at dawn.", " A warm cup waits by the window.", " The the the the end.")
    found = []
    for number in range(3):
        sentences = tuple(ScoredSentence(text, noise.gauss(0, 1.5)) for text in texts[: number + 1])
        sentences += (ScoredSentence(" More.", None),)
        found.append(
            Sample(
                stage=stage,
                step=80,
                prompt=f"Write about tea. Use at most {20 + number} words and no commas.",
                response="".join(sentence.text for sentence in sentences),
                expert="Tea is patient. It asks for water and for time. Pour it slowly and listen.",
                reward=float(number % 2),
                passed=bool(number % 2),
                sentences=sentences,
            )
        )
    return found


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, seed=…, weight=…)` writes a whole run directory below tmp_path and returns it."""

    def make(name: str, seed: int = 0, weight: float = 0.0, policy: str | None = None) -> Path:
        run_dir = tmp_path / name
        noise = random.Random(f"{name} {seed}")
        rows = []
        global_step = 0
        with MetricsLog(run_dir, tensorboard=False) as metrics, SampleLog(run_dir) as samples:
            for stage, steps in STAGES:
                for step in range(1, steps + 1):
                    global_step += 1
                    figures = train_figures(stage, step / steps, weight, noise)
                    metrics.write("train", stage, step, global_step, figures)
                rate = {"base": 0.02, "sft": 0.34, "rl": 0.06 + 0.2 * weight}[stage] + noise.uniform(0, 0.04)
                rows.append(summary_row(policy or name, stage, seed, rate, noise))
                figures = {"eval/pass_rate": rows[-1]["pass_rate"], "eval/prompts": PROMPTS}
                metrics.write("eval", stage, steps, global_step, figures)
                for sample in samples_of(stage, noise):
                    samples.write(sample)
        (run_dir / "summary.json").write_text(json.dumps(rows))
        recipe = RECIPE.format(name=policy or name, seed=seed, weight=weight)
        (run_dir / "recipe.toml").write_text(recipe)
        return run_dir

    return make
