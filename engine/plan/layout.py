"""A parallel layout: its sizes, which layers a stage has, and where its ranks stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a model is spread over GPUs.

    Attributes:
        tensor, pipeline, context, data: sizes of the parallel groups; their product is the number of GPUs.
        virtual: chunks of layers that each pipeline stage has; more than one is the interleaved schedule.
        sequence: whether activations between tensor-parallel regions are split along the sequence, too.
        recompute: what the backward pass computes again: "none", "selective" (the core attention) or "full".
        distributed_optimizer: whether optimizer states are split over data x context.
        overlap: whether gradients are reduced, and parameters gathered, during the passes.
        offload: whether optimizer states, gradients and frozen models are off the GPU in phases without use for them.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    virtual: int = 1
    sequence: bool = False
    recompute: str = "none"
    distributed_optimizer: bool = False
    overlap: bool = False
    offload: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def replica(self) -> int:
        """Ranks that work on the same sequences."""
        return self.tensor * self.context * self.pipeline

    @property
    def gradient_ranks(self) -> int:
        """Ranks that hold the same parameters: gradients are summed over them."""
        return self.data * self.context

    def sizes(self) -> str:
        """As in "TP4 PP2×2 CP2 DP2": sizes of the groups, and chunks of a pipeline stage."""
        parts = [f"TP{self.tensor}", f"PP{self.pipeline}" + (f"×{self.virtual}" if self.virtual > 1 else "")]
        parts += [f"CP{self.context}"] if self.context > 1 else []
        return " ".join([*parts, f"DP{self.data}"])

    def name(self) -> str:
        """The sizes and what else is on, in words."""
        parts = [self.sizes()]
        parts += ["sequence parallelism"] if self.sequence else []
        parts += ["distributed optimizer"] if self.distributed_optimizer else []
        parts += [f"{self.recompute} recomputation"] if self.recompute != "none" else []
        parts += ["offloading"] if self.offload else []
        return ", ".join(parts)

    def layers(self, stage: int, layers: int) -> list[list[int]]:
        """Global layers of each chunk of a pipeline stage, as Megatron deals them out."""
        size = layers // (self.pipeline * self.virtual)
        starts = [chunk * (layers // self.virtual) + stage * size for chunk in range(self.virtual)]
        return [list(range(start, start + size)) for start in starts]

    def groups(self) -> dict[str, list[list[int]]]:
        """Global ranks of the groups of each kind, in Megatron's order: tensor, context, data, pipeline from within."""
        sizes = {"tensor": self.tensor, "context": self.context, "data": self.data, "pipeline": self.pipeline}
        found, stride = {}, 1
        for kind, size in sizes.items():
            firsts = [rank for rank in range(self.gpus) if (rank // stride) % size == 0]
            found[kind] = [[first + stride * place for place in range(size)] for first in firsts]
            stride *= size
        return found

    def crosses_nodes(self, per_node: int) -> dict[str, bool]:
        """Whether a group of each kind has ranks on several machines."""
        return {
            kind: any(len({rank // per_node for rank in group}) > 1 for group in groups)
            for kind, groups in self.groups().items()
        }


def divisors(number: int, most: int | None = None) -> Iterator[int]:
    """Divisors in ascending order."""
    for value in range(1, min(number, most or number) + 1):
        if number % value == 0:
            yield value
