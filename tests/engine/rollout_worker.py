"""Started by torchrun: rollouts by the policy itself at a layout, and the memory of them and of the weight stream.

rollout_worker.py TENSOR PIPELINE OUTPUT [KEY=VALUE…]: further keys of the layout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import rollout_case

from aapa.engine.policy import parallel as groups


def main(tensor: int, pipeline: int, output: Path, keys: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(tensor, pipeline, timeout_seconds=120, **keys)
    found = {
        "rollouts": rollout_case.decoded(rollout_case.policy(parallel)),
        "rollout_bytes": rollout_case.rollout_bytes(parallel),
        "stream_bytes": rollout_case.stream_bytes(parallel),
        "weights": rollout_case.bucketed_weights(parallel),
    }
    (output / f"rank-{parallel.rank}.json").write_text(json.dumps(found))
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    pairs = (word.split("=", 1) for word in sys.argv[4:])
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), {name: json.loads(value) for name, value in pairs})
