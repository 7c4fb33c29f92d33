"""What the trainer asks of a rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        prompt: token ids.
        response: token ids, with the end-of-sequence token where one was sampled.
        finished: whether it ended by itself rather than at the length limit.
        logprob: float32 [R], log-probs under the distribution it was sampled from.
    """

    prompt: list[int]
    response: list[int]
    finished: bool
    logprob: Tensor


class RolloutEngine(Protocol):
    """Samples responses from the policy's current weights.

    Attributes:
        on_every_rank: whether all ranks of a replica have the engine and call `generate`, with the same prompts; else
            the leader has it, and sends the rollouts to the others.
    """

    on_every_rank: bool

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the policy's weights from a stream of (Hugging Face name, whole tensor)."""

    def generate(
        self, prompts: list[list[int]], seeds: list[int], *, max_new_tokens: int, temperature: float
    ) -> list[Rollout]:
        """One response per prompt. Row i draws its random numbers from `seeds[i]` alone, so that a response does not
        depend on which others share its batch."""


def sample_seed(*counters: int | str) -> int:
    """64-bit seed of one sample from what names it, such as (run seed, stage, step, prompt, sample)."""
    text = "/".join(str(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
