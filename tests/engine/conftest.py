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
sys.path.insert(0, str(HERE))


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


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of language model, SFT and a fitted discriminator, that other runs begin from."""
    from runs import start_table

    from aapa.engine.recipe import parse_recipe
    from aapa.engine.trainer import train

    directory = tmp_path_factory.mktemp("start")
    train(parse_recipe(start_table()), directory)
    return directory


@pytest.fixture
def own_reward(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A reward function in a file of the user's own, which never ties on purpose."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "reward_of_tests.py").write_text(
        "import os, signal\n"
        "calls = 0\n"
        "def vowels(prompts, completions, **columns):\n"
        "    return [sum(c in 'aeiou' for c in text) / 10 for text in completions]\n"
        "def stop_at_third(prompts, completions, **columns):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    flag = __file__ + '.stopped'  # a run that goes on has another process, which counts anew\n"
        "    if calls == 3 and not os.path.exists(flag):\n"
        "        open(flag, 'w').close()\n"
        "        os.kill(os.getppid(), signal.SIGTERM)\n"
        "    return vowels(prompts, completions)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
