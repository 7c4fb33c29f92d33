"""`aapa train` under torchrun: tensor, pipeline and data parallelism take the same way as one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aapa.engine.metrics import read_metrics

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

# The large epsilon: Adam's first steps are signs of gradients, which rounding flips where they are nearly zero.
RECIPE = """
name = "layouts"
[model]
hidden_size = 32
intermediate_size = 48
num_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
[data]
options = { train_size = 60, dev_size = 16, test_size = 16, held_out_size = 8, corpus_size = 100 }
[rollout]
max_new_tokens = 12
[discriminator]
fit_after = "sft"
prompts = 12
steps = 10
rollouts_per_prompt = 2
rank = 8
[evaluation]
prompts = 8
final_prompts = 8
[[stages]]
name = "base"
data = "corpus"
steps = 12
prompts_per_step = 8
learning_rate = 1e-2
adam_eps = 1e-3
objective = { kind = "sft" }
[[stages]]
name = "sft"
steps = 2
prompts_per_step = 4
learning_rate = 1e-3
adam_eps = 1e-3
objective = { kind = "sft" }
[[stages]]
name = "rl"
steps = 2
prompts_per_step = 4
learning_rate = 1e-4
adam_eps = 1e-3
rewards = [{ function = "aapa.engine.tasks.mini_if.rewards:proxy_reward" }]
objective = { kind = "grpo", group_size = 2, beta = 0.05, updates_per_rollout = 2, anchor = { weight = 0.5 } }
"""
COLLECTIVE = ("loss/", "reward/", "anchor/mean", "policy/", "response/length", "eval/", "optim/")


def run(folder: Path, processes: int, *overrides: str, nodes: int = 1) -> Path:
    """Train on one machine, or on this one as several: an agent of torchrun each, over loopback."""
    (folder / "recipe.toml").write_text(RECIPE)
    out = folder / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agents = []
    for node in range(nodes):
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += [f"--nnodes={nodes}", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command += ["-m", "aapa.engine", "train", str(folder / "recipe.toml"), "--output", str(out), *overrides]
        log = (folder / f"node-{node}.log").open("w")
        agents.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    try:
        codes = [agent.wait(timeout=400) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert codes == [0] * nodes, "".join((folder / f"node-{node}.log").read_text()[-5000:] for node in range(nodes))
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "data"])
def test_every_layout_trains_the_same_policy(layout, alone, tmp_path):
    overrides = [] if layout == "data" else [f"--parallel.{layout}", "2"]
    out = run(tmp_path, 2, *overrides)
    rows, expected = read_metrics(out), read_metrics(alone)
    assert [(r["kind"], r["stage"], r["step"]) for r in rows] == [(r["kind"], r["stage"], r["step"]) for r in expected]
    for row, want in zip(rows, expected, strict=True):
        for name, value in want.items():
            if name.startswith(COLLECTIVE) and isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=2e-3, abs=2e-4), (row["stage"], row["step"], name)
    got, want_weights = (load_file(place / "final" / "model.safetensors") for place in (out, alone))
    assert got.keys() == want_weights.keys()
    for name, weight in want_weights.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=2e-3, msg=name)
    summaries = [json.loads((place / "summary.json").read_text()) for place in (out, alone)]
    assert summaries[0][-1]["pass_rate"] == summaries[1][-1]["pass_rate"]


def test_two_nodes_train_twenty_steps_with_rollouts_of_their_own(tmp_path):
    """TP2 x DP2 on two nodes, with all that saves memory, against one process with the same engine."""
    for name in ("alone", "nodes"):
        (tmp_path / name).mkdir()
    more = ["--rollout.engine", "megatron", "--stages.rl.steps", "6"]
    flags = ("sequence", "distributed_optimizer", "overlap", "offload")
    keys = [word for flag in flags for word in (f"--parallel.{flag}", "true")]
    keys += ["--parallel.tensor", "2", "--parallel.recompute", "full"]
    outs = run(tmp_path / "nodes", 2, *more, *keys, nodes=2), run(tmp_path / "alone", 1, *more)
    rows, expected = ([row for row in read_metrics(out) if row["kind"] == "train"] for out in outs)
    assert len(rows) == len(expected) == 20
    for row, want in zip(rows, expected, strict=True):
        for figure in ("loss/total", "response/length", "reward/mean"):
            if figure in want:
                assert row[figure] == pytest.approx(want[figure], rel=2e-3, abs=2e-4), (row["stage"], row["step"])
