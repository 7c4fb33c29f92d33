"""Started by torchrun: scores in float64 at a layout, written to files by each replica's leader and its last rank.

scoring_worker.py TENSOR PIPELINE OUTPUT REWARD_MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import scoring_case

from aapa.discriminator import PolarDiscriminator
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.parallel import Parallel
from aapa.engine.reward_model import RewardModel
from aapa.engine.scoring import ResponseScorer


def reward_scores(parallel: Parallel, directory: Path) -> dict[str, torch.Tensor]:
    """A reward model on the leader; each replica judges its own share."""
    model = RewardModel(directory, parallel.device, torch.float64, 200) if parallel.is_leader else None
    origin = parallel.from_leader(None if model is None else model.origin)
    discriminator = PolarDiscriminator(0.0, 1.0, origin)
    scorer = ResponseScorer(
        discriminator, model, parallel, lambda ids: " ".join(map(str, ids)), scoring_case.TABLE, dtype=torch.float64
    )
    numbered = list(enumerate(scoring_case.items()))[parallel.data_rank :: parallel.data]
    scores = scorer.score([e for _, (e, _) in numbered], [r for _, (_, r) in numbered])
    return {f"{number:02d}": scores.within(place, scores.score_S) for place, (number, _) in enumerate(numbered)}


def main(tensor: int, pipeline: int, output: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    parallel = groups.start(tensor, pipeline, timeout_seconds=120)
    trunk = scoring_case.every_way(parallel)
    judged = reward_scores(parallel, directory)
    output.mkdir(exist_ok=True)
    save_file(trunk, output / f"trunk-{parallel.rank}.safetensors")
    save_file(judged, output / f"judged-{parallel.rank}.safetensors")
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
