"""Recipes of whole runs that the engine's tests share, and what is compared of their results."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from aapa.engine.metrics import read_metrics

DATA = {"options": {"train_size": 80, "dev_size": 32, "test_size": 32, "held_out_size": 8, "corpus_size": 200}}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def start_table() -> dict:
    """Language model, SFT, and a discriminator between them and what comes after."""
    return {
        "name": "start",
        "model": dict(SMALL),
        "data": DATA,
        "discriminator": {
            "fit_after": "sft",
            "prompts": 30,
            "steps": 20,
            "rollouts_per_prompt": 2,
            "rank": 16,
        },
        "evaluation": {"prompts": 16, "final_prompts": 16, "every": 2},
        "stages": [
            {
                "name": "base",
                "data": "corpus",
                "steps": 30,
                "prompts_per_step": 16,
                "learning_rate": 1e-2,
                "objective": {"kind": "sft"},
            },
            {
                "name": "sft",
                "steps": 4,
                "prompts_per_step": 8,
                "learning_rate": 1e-3,
                "objective": {"kind": "sft"},
            },
        ],
    }


def rl_table(start: Path, weight: float | None, steps: int = 20, **objective) -> dict:
    anchor = {} if weight is None else {"anchor": {"weight": weight}}
    table = {
        "name": "rl",
        "model": {"source": str(start / "final")},
        "data": DATA,
        "rollout": {"max_new_tokens": 12},
        "evaluation": {"prompts": 16, "final_prompts": 16},
        "stages": [
            {
                "name": "rl",
                "steps": steps,
                "prompts_per_step": 2,
                "learning_rate": 1e-3,
                "rewards": [{"function": "reward_of_tests:vowels"}],
                "objective": {"kind": "grpo", "group_size": 4, "updates_per_rollout": 2} | anchor | objective,
            }
        ],
    }
    if weight is not None:
        table["discriminator"] = {"source": str(start / "discriminator")}
    return table


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "final" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(directory: Path) -> list[dict]:
    """The metric log without what only the clock decides."""
    clock = ("time/", "throughput/", "memory/")
    return [
        {name: repr(value) for name, value in row.items() if not name.startswith(clock)}
        for row in read_metrics(directory)
    ]
