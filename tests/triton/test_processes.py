"""Starts the other tests of this folder in processes of their own, where there is no GPU to run them on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Two processes, so that two workers share the time: half of it each.
NUMERICS = ("test_three_way.py", "test_policy_loss.py")
COMPILED = ("test_processes.py", "test_ahead_of_time.py")
OTHERS = tuple(sorted({file.name for file in HERE.glob("test_*.py")} - {*NUMERICS, *COMPILED}))

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this folder's tests run on the GPU themselves")


@pytest.mark.parametrize("files", [NUMERICS, OTHERS], ids=["numerics", "others"])
def test_in_the_interpreter(files: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f) for f in files)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout, done.stdout
