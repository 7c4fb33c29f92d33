"""The launch files of the examples: two agents on this machine, and a Slurm that is three small scripts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from aapa.engine.metrics import read_metrics

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
LAUNCH = Path(__file__).resolve().parents[2] / "examples" / "launch"
RECIPE = ("smoke", "--parallel.tensor", "2", "--checkpoint.every", "5")
SRUN = """#!/usr/bin/env bash
# As Slurm does: the command once a machine, here twice on this one; signals reach it through scancel.
"$@" & first=$!
"$@" & second=$!
echo "$first $second" > "$STATE/agents"
code=0
wait "$first" || code=$?
wait "$second" || code=$?
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf '127.0.0.1\\nother\\n'; else echo "$@" >> "$STATE/requeued"; fi
"""
SCANCEL = """#!/usr/bin/env bash
[ "$1" = --signal=TERM ] && kill -TERM $(cat "$STATE/agents")
"""


def environment(**more: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "GPUS": "1", "LOCAL_ADDR": "127.0.0.1", "PORT": str(port)}
    return os.environ | own | more


def steps(run: Path) -> Counter:
    return Counter((row["stage"], row["step"]) for row in read_metrics(run) if row["kind"] == "train")


def test_torchrun_on_two_machines(tmp_path):
    run = tmp_path / "run"
    command = [str(LAUNCH / "torchrun.sh"), *RECIPE, "--output", str(run)]
    shared = environment(NODES="2", HEAD="127.0.0.1")
    logs = [(tmp_path / f"{number}.log").open("w+") for number in range(2)]
    agents = [subprocess.Popen(command, env=shared, stdout=log, stderr=subprocess.STDOUT) for log in logs]
    codes = [agent.wait(timeout=400) for agent in agents]
    assert codes == [0, 0], [(tmp_path / f"{number}.log").read_text()[-3000:] for number in range(2)]
    assert set(steps(run).values()) == {1} and len(steps(run)) == 9
    assert (run / "final" / "model.safetensors").is_file()
    assert json.loads((run / "summary.json").read_text())[-1]["stage"] == "rl"


def test_a_slurm_job_saves_before_its_time_is_up_and_goes_on(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    run = tmp_path / "run"
    command = ["bash", str(LAUNCH / "slurm.sbatch"), *RECIPE, "--stages.base.steps", "300", "--output", str(run)]

    def job() -> tuple[subprocess.Popen, Path]:
        job_environment = environment(
            SLURM_NNODES="2", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]", STATE=str(tmp_path)
        )
        job_environment["PATH"] = f"{programs}{os.pathsep}{job_environment['PATH']}"
        log = tmp_path / "job.log"
        with log.open("a") as file:
            return subprocess.Popen(command, env=job_environment, stdout=file, stderr=subprocess.STDOUT), log

    started, log = job()
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").is_file() or len(steps(run)) < 7:
        assert time.monotonic() < deadline and started.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(timeout=300) != 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", log.read_text()[-3000:]
    before = len(steps(run))
    assert before < 300 and list((run / "checkpoints").glob("step-*"))
    again, log = job()
    assert again.wait(timeout=400) == 0, log.read_text()[-3000:]
    assert "interrupted" in log.read_text()
    found = steps(run)
    assert set(found.values()) == {1} and len(found) == 306, "no step is missing, and none is there twice"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "a job that is done is not queued again"
