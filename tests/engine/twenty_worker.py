"""Started by torchrun: twenty steps, ten of SFT and ten of A-GRPO on fixed rollouts, at a layout.

twenty_worker.py TENSOR PIPELINE OUTPUT [KEY=VALUE…]: further keys of the layout and of `TrainSettings`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

import scoring_case
import tiny

from aapa import GRPO, SFT, Anchor, Objective
from aapa.batch import BatchCounts, Sequence
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings
from aapa.engine.policy.stream import stream
from aapa.engine.rollout import Rollout
from aapa.engine.sampling import RolloutBatch
from aapa.engine.step import advantages
from aapa.packing import pack

LAYERS, STEPS, TEMPERATURE = 4, 10, 0.8
GROUP = 4


class Course:
    """Steps of a policy, and what is compared of them."""

    def __init__(self, parallel: Parallel, settings: TrainSettings) -> None:
        self.parallel = parallel
        self.policy = MegatronPolicy(tiny.config(True, LAYERS), parallel, torch.float32, settings)
        self.policy.load_weights(tiny.hf_model(True, torch.float32, layers=LAYERS).state_dict())
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def stage(self, name: str, objective: Objective, sequences: list[Sequence]) -> None:
        self.policy.start_stage(AdamSettings(weight_decay=0.1))
        vector = self.parallel.sum_over_data(BatchCounts.of(sequences).vector())
        counts = BatchCounts.from_vector(vector)
        for step in range(STEPS):
            batches = pack(sequences, 60, objective, counts, step)
            if step == 0:
                self.policy.gradients(batches, objective)
                whole = stream(self.policy.chunks, self.policy.hf, self.parallel, lambda p: p.main_grad.clone())
                self.gradients |= {f"{name} {key}": grad.clone() for key, grad in whole}
            sums = self.policy.train_step(batches, objective, 1e-3).sums
            self.losses.append(sum(value for key, value in sums.items() if key.startswith("loss/")))


def rollouts(parallel: Parallel) -> RolloutBatch:
    """This replica's groups of fixed rollouts, with fixed rewards, and scores from the trunk in this layout."""
    everything = scoring_case.items()
    generator = torch.Generator().manual_seed(7)
    rewards = torch.rand(len(everything), generator=generator).tolist()
    places = [i for i in range(len(everything)) if (i // GROUP) % parallel.data == parallel.data_rank]
    examples, responses = [everything[i][0] for i in places], [everything[i][1] for i in places]
    scores = scoring_case.scorer(parallel, "sentence", "states", 40).score(examples, responses)
    made = [Rollout(e.prompt, r, True, torch.zeros(len(r))) for e, r in zip(examples, responses, strict=True)]
    return RolloutBatch(examples, made, [i // GROUP for i in places], [rewards[i] for i in places], scores)


def main(tensor: int, pipeline: int, output: Path, keys: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    layout = {name: keys.pop(name) for name in ("context", "sequence", "virtual") if name in keys}
    parallel = groups.start(tensor, pipeline, timeout_seconds=120, **layout)
    course = Course(parallel, TrainSettings(**keys))
    experts = [Sequence(s.prompt, s.response, "expert") for s in tiny.rollouts(12)]
    course.stage("sft", SFT(), experts[parallel.data_rank :: parallel.data])
    objective = GRPO(group_size=GROUP, clip_high=0.28, anchor=Anchor(weight=0.5))
    sequences = advantages(rollouts(parallel), objective, 0, TEMPERATURE, 64)
    # From here on the policy moves away from the one that these are of: ratios are not 1.
    for batch, (logprob, _) in zip(batches := pack(sequences, 60), course.policy.logprobs(batches), strict=True):
        for index, values in zip(batch.index_N, batch.responses(logprob), strict=True):
            sequences[index].old_logprob = values
    course.stage("a-grpo", objective, sequences)
    weights = {name: tensor.clone() for name, tensor in course.policy.weights()}
    if parallel.is_main:
        save_file(weights, output / "weights.safetensors")
        save_file(course.gradients, output / "gradients.safetensors")
        (output / "losses.json").write_text(json.dumps(course.losses))
    parallel.barrier()
    groups.stop()


if __name__ == "__main__":
    pairs = (word.split("=", 1) for word in sys.argv[4:])
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), {name: json.loads(value) for name, value in pairs})
