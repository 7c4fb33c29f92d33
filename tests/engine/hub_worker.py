"""Started by torchrun: hub_worker.py NAME OUTPUT writes where each rank finds a model of the hub to OUTPUT.RANK."""

from __future__ import annotations

import sys
from pathlib import Path

from aapa.engine.hub import local_directory
from aapa.engine.policy import parallel as groups

if __name__ == "__main__":
    parallel = groups.start(timeout_seconds=60)
    directory = local_directory(sys.argv[1], parallel)
    Path(f"{sys.argv[2]}.{parallel.rank}").write_text(str(directory))
    parallel.barrier()
    groups.stop()
