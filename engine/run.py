"""What a run holds while it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import torch

from aapa.engine.data import Sampler, TokenizedExample, tokenized
from aapa.engine.examples import Task
from aapa.engine.hf_directory import Origin, write_directory
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.parallel import Parallel
from aapa.engine.recipe import Recipe, StageTable
from aapa.engine.reward_process import Bounds
from aapa.engine.rewards import FailureWindow, RewardPool, Rewards
from aapa.engine.rollout import Rollout, RolloutEngine, sample_seed
from aapa.engine.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Run:
    """The parts of a run that every stage shares.

    Attributes:
        engine: rollouts; on the leader of each replica, or on all its ranks where they decode together.
        origin: where the policy was read from; None for one from scratch.
        pool: reward functions; used on the leader of each replica only.
    """

    recipe: Recipe
    directory: Path
    parallel: Parallel
    task: Task
    tokenizer: PreTrainedTokenizerFast
    policy: MegatronPolicy
    engine: RolloutEngine | None
    origin: Origin | None = None
    pool: RewardPool = field(init=False)
    _splits: dict[str, Sequence[TokenizedExample]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = RewardPool(Bounds(self.recipe.rewards.timeout, self.recipe.rewards.memory_gb))

    @property
    def initial_directory(self) -> Path:
        """The directory with the policy that the run begins with."""
        return self.directory / "stages" / "initial" if self.origin is None else self.origin.directory

    def write_policy(self, directory: Path, original_types: bool = False) -> None:
        """Write the policy in Hugging Face format with what came along with its weights; a collective.

        Args:
            original_types: in the types that the weights were given in, rather than in the policy's own.
        """
        write_directory(
            directory,
            self.policy.hf,
            self.policy.weights(),
            self.tokenizer,
            write=self.parallel.is_main,
            origin=self.origin,
            original_types=original_types,
        )

    def sync_engine(self) -> None:
        """Send the policy's weights to the rollout engine, unless it is the policy itself."""
        if self.engine is not None and self.engine.on_every_rank:
            self.policy.finish_gather()
        elif self.engine is not None:
            self.engine.load_weights(self.policy.weights())
        else:
            for _ in self.policy.weights():
                pass

    def generate(
        self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int, temperature: float
    ) -> list[Rollout]:
        """The replica's rollouts, on every rank of it."""
        rollouts = None
        if self.engine is not None and self.engine.on_every_rank:
            if not prompts:
                return []
            return self.engine.generate(prompts, seeds, max_new_tokens=max_new_tokens, temperature=temperature)
        if self.engine is not None and prompts:
            rollouts = self.engine.generate(prompts, seeds, max_new_tokens=max_new_tokens, temperature=temperature)
        return self.parallel.from_leader(rollouts) or []

    def mine(self, indices: list[T]) -> list[T]:
        """This replica's share of a global batch; a group never leaves its replica."""
        return indices[self.parallel.data_rank :: self.parallel.data]

    def evaluation_data(self, split: str, count: int) -> Sequence[TokenizedExample]:
        """The first `count` examples of a split, tokenized once."""
        if split not in self._splits:
            longest = self.policy.hf.max_position_embeddings
            self._splits[split] = tokenized(self.task.examples(split), self.tokenizer, longest, split)
        return self._splits[split][:count]

    def text(self, response: list[int]) -> str:
        """A response as text, without its special tokens."""
        return self.tokenizer.decode(response, skip_special_tokens=True)


@dataclass
class StageRun:
    """One stage at work.

    Attributes:
        sampler: order of the stage's examples; refills: of those that dynamic sampling takes in addition; experts: of
            the experts, where their batch is drawn on its own.
        reference: frozen policy of the KL term, where the objective has one.
        scorer: the discriminator at work, where the objective has an anchor.
        failures: ends the run where too many samples have no reward.
        times, logged: seconds of each phase, and what reward functions logged, in the current step.
    """

    index: int
    table: StageTable
    data: Sequence[TokenizedExample]
    sampler: Sampler
    refills: Sampler
    experts: Sampler
    rewards: Rewards
    reference: FrozenModel | None
    scorer: Scorer | None
    failures: FailureWindow
    times: dict[str, float] = field(default_factory=dict)
    logged: list[tuple[str, float]] = field(default_factory=list)

    def shares_reference(self, run: Run) -> bool:
        """Whether the KL reference is the discriminator's trunk, and one pass gives its log-probs and its states."""
        return (
            self.scorer is not None
            and self.reference is not None
            and self.reference is self.scorer.trunk
            and self.reference.shares_forward(run.recipe.rollout.temperature)
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to a phase of the step."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.times[phase] = self.times.get(phase, 0.0) + perf_counter() - begin

    def seed(self, run: Run, step: int, example: int, sample: int) -> int:
        return sample_seed(run.recipe.seed, self.table.name, step, example, sample)
