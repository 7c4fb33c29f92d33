"""What the loss kernels take: per-token tensors and the flags that say how to combine them.

Shape legend: T tokens of many sequences laid end to end.

Entry t speaks of the prediction made **at** position t, that is of the token at position t + 1. The last position
of a sequence predicts nothing: its weights are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("rl", "kl", "sft", "adv")


@dataclass(frozen=True)
class TokenFields:
    """Inputs of a token-separable loss; all [T] on one device. A component whose weight is None does not exist.

    The weights (METHOD 4.1) hold coefficient x aggregation weight / global denominator, so that the loss is the
    plain sum of weight x value over tokens and micro-batches; nothing is divided later.

    Attributes:
        target_T: int64, the token predicted at t, 0 where nothing is predicted.
        temperature_T: float32, logits are divided by it; None means 1.
        rl_weight_T, kl_weight_T, sft_weight_T, adv_weight_T: float32 component weights.
        advantage_T: float32, group-relative advantage of the rl component.
        anchor_advantage_T: float32, centred anchor score (3.2) of the adv component.
        old_logprob_T: float32, log-probs of the policy that the update started from. None: this is the first update,
            and the ratio is exp(logprob - stop_gradient(logprob)).
        ref_logprob_T: float32, log-probs of the frozen reference, for the kl component.
    """

    target_T: Tensor
    temperature_T: Tensor | None = None
    rl_weight_T: Tensor | None = None
    kl_weight_T: Tensor | None = None
    sft_weight_T: Tensor | None = None
    adv_weight_T: Tensor | None = None
    advantage_T: Tensor | None = None
    anchor_advantage_T: Tensor | None = None
    old_logprob_T: Tensor | None = None
    ref_logprob_T: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = self.target_T.shape
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value.shape != tokens:
                raise ValueError(f"{field.name}: expected shape {tuple(tokens)}, got {tuple(value.shape)}")
        for weight, needed in (
            ("rl_weight_T", "advantage_T"),
            ("kl_weight_T", "ref_logprob_T"),
            ("adv_weight_T", "anchor_advantage_T"),
        ):
            if getattr(self, weight) is not None and getattr(self, needed) is None:
                raise ValueError(f"{needed}: expected a tensor beside {weight}, got None")

    def weight(self, component: str) -> Tensor | None:
        return getattr(self, f"{component}_weight_T")

    def rows(self, start: int, stop: int) -> TokenFields:
        """The fields of tokens [start, stop)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: value if value is None else value[start:stop] for name, value in values.items()}
        return replace(self, **cut)


@dataclass(frozen=True)
class TokenLossSpec:
    """Scalars and flags of a token-separable loss.

    Attributes:
        clip_low, clip_high: epsilon of (3.3) below and above a ratio of 1.
        kl: estimator of the divergence from the reference: "k3" = exp(d) - d - 1, d = ref_logprob - logprob.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: Literal["k3"] = "k3"
