"""What a discriminator and its trunk are, and what identifies a score.

Shape legend: S sentences, E expert sentences, G groups (prompts), D hidden size of the trunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from aapa.kernels import SentenceTable
from aapa.sentences import Granularity


class Trunk(Protocol):
    """A frozen language model seen as a source of sentence features.

    Attributes:
        hidden_size: D.
        hash: SHA-256 over its weights and the layer whose hidden states it gives.
    """

    @property
    def hidden_size(self) -> int: ...
    @property
    def hash(self) -> str: ...

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        """u_k of (2.1): mean hidden state of each span of each response, float32 [sum of K_i, D], in order.

        `cu_sents[i]`: int32 [K_i + 1] offsets inside response i. How the responses are batched is the trunk's
        affair.
        """
        ...


@dataclass(frozen=True)
class Origin:
    """What a score depends on besides the discriminator's own weights.

    Attributes:
        trunk: hash of the trunk whose states are scored, or of a reward model.
        layer: which hidden state of the trunk; -1 for a reward model.
        table: hash of the tokenizer's segmentation table, or of a reward model's tokenizer and template.
    """

    trunk: str
    layer: int
    table: str


class Frozen(Protocol):
    """What every frozen discriminator says of itself: enough to store it, and to calibrate its scores.

    Attributes:
        kind: name of the formula: "sentence" (2.1), "polar" (2.2), "cosine" (2.3), or one's own.
        granularity: of the spans it was fitted on.
        mean, std: mu_off and sigma_off of (3.1), of its scores on held-out rollouts.
        origin: what its inputs must come from.
        hash: SHA-256 over everything that decides a score.
    """

    @property
    def kind(self) -> str: ...
    @property
    def granularity(self) -> Granularity: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def hash(self) -> str: ...

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name; empty for a discriminator that has none."""
        ...

    def scalars(self) -> dict[str, float]:
        """Numbers that decide a score beside the weights, the mean and the standard deviation."""
        ...


@runtime_checkable
class Discriminator(Frozen, Protocol):
    """A frozen score of sentences against the expert sentences of their prompt (METHOD §2)."""

    def score(self, sentence_SD: Tensor, cu_group: Tensor, expert_ED: Tensor, cu_expert: Tensor) -> Tensor:
        """Raw scores, float [S], without gradient; 0 for groups without expert sentences.

        Arguments as in `aapa.kernels.sentence_scores`.
        """
        ...


class Kind(Protocol):
    """A class of discriminators, as the store restores them."""

    def restore(
        self,
        tensors: Mapping[str, Tensor],
        scalars: Mapping[str, float],
        mean: float,
        std: float,
        origin: Origin,
        granularity: Granularity,
    ) -> Frozen:
        """The discriminator whose `tensors()`, `scalars()`, `mean`, … these are; a class method."""
        ...


def content_hash(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over JSON-able facts and tensors: names, dtypes, shapes and bytes, in order of their names."""
    digest = hashlib.sha256(canonical_json(facts).encode())
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks, so that equal values give equal text; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def facts(discriminator: Frozen) -> dict[str, Any]:
    """Everything that decides a score but the tensors, as JSON-able values."""
    return {
        "kind": discriminator.kind,
        "granularity": discriminator.granularity,
        "mean": discriminator.mean,
        "std": discriminator.std,
        "scalars": discriminator.scalars(),
        "origin": asdict(discriminator.origin),
    }


def discriminator_hash(discriminator: Frozen) -> str:
    """The `hash` of a discriminator."""
    return content_hash(facts(discriminator), discriminator.tensors())


def table_hash(table: SentenceTable) -> str:
    """SHA-256 of a segmentation table."""
    return content_hash({}, vars(table))
