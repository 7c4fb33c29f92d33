"""How a policy trains beyond its layout: what saves memory, and what overlaps communication with computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class TrainSettings:
    """None of these changes what is computed, but for the order in which numbers are added.

    Attributes:
        distributed_optimizer: optimizer states, and main weights where the policy is of 16 bits, are split over the
            ranks that hold the same weights (ZeRO stage 1).
        overlap: gradients are reduced while the backward pass goes on; with `distributed_optimizer`, updated weights
            are gathered while the next forward pass goes on.
        recompute: activations that the backward pass computes again: "none", those of the core attention
            ("selective"), or those of whole layers ("full"). Those of the LM head never are, for its gradients are made
            in the forward pass.
        bucket_parameters: parameters whose gradients are reduced at once under `overlap`; None for Megatron's choice.
    """

    distributed_optimizer: bool = False
    overlap: bool = False
    recompute: Recompute = "none"
    bucket_parameters: int | None = None
