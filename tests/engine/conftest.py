"""A tiny policy in one process, and several processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def parallel() -> Iterator:
    """The groups of a job of one process; tests that call `train` open and close their own."""
    from aapa.engine.policy import parallel as groups

    torch.set_num_threads(1)
    yield groups.start()
    groups.stop()


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """Run a script of this folder in several processes; fail with their output."""

    def run(script: str, processes: int, *arguments: object, timeout: float = 240) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(HERE / script), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    return run
