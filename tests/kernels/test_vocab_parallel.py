"""The vocabulary split over 2 and 4 processes gives what one process gives, to 1e-10 in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aapa.kernels.native import missing

# The fast backends share the loop that talks to other ranks; one of them is enough by default.
BACKENDS = ["reference"] if missing() is not None else ["native", pytest.param("reference", marks=pytest.mark.slow)]


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_vocabulary(backend):
    worker = str(Path(__file__).parent / "vocab_parallel_worker.py")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=4", worker, backend]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
