"""An objective as a user would write it: REINFORCE with a bonus for entropy, named in recipes by its dotted path."""

from __future__ import annotations

from dataclasses import dataclass

from aapa import Objective
from aapa.batch import BatchCounts, Sequence, TokenBatch
from aapa.kernels.fields import TokenFields, TokenLossSpec


@dataclass(frozen=True)
class Reinforce(Objective):
    """-A log pi - bonus x entropy, averaged over tokens.

    Attributes:
        group_size: rollouts per prompt.
        bonus: coefficient of the entropy.
    """

    group_size: int  # no default: a recipe must give it
    bonus: float = 0.01

    def components(self, step: int) -> tuple[str, ...]:
        return ("custom",)

    def weights(self, sequence: Sequence, counts: BatchCounts, step: int) -> dict[str, float]:
        return {"custom": 1.0 / counts.rollout_tokens} if sequence.tokens else {}

    def lower(self, batch: TokenBatch) -> tuple[TokenFields, TokenLossSpec]:
        def loss(logprob, entropy, fields):
            return -fields.advantage_T * logprob - self.bonus * entropy

        return batch.fields(), TokenLossSpec(custom_loss=loss)
