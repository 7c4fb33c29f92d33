"""What the loss kernels take: per-token tensors and the flags that say how to combine them.

Shape legend: T tokens of many sequences laid end to end.

Entry t speaks of the prediction made **at** position t, that is of the token at position t + 1. The last position
of a sequence predicts nothing: its weights are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from aapa.kernels.checks import check_integers, check_shape

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("rl", "kl", "sft", "adv", "custom")
Surrogate = Literal["clip", "cispo"]
RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class TokenFields:
    """Inputs of a token-weighted loss; all [T] on one device. A component whose weight is None does not exist.

    The weights (METHOD 4.1) hold coefficient x aggregation weight / global denominator, so that the loss is the
    plain sum of weight x value over tokens and micro-batches; nothing is divided later.

    Attributes:
        target_T: integers, the token predicted at t, 0 where nothing is predicted. A target outside of the vocabulary
            has the log-prob NaN, which is seen in the loss where the token has a weight.
        temperature_T: float32, logits are divided by it; None means 1. Positive where the token has a weight, which is
            checked on the CPU.
        rl_weight_T, kl_weight_T, sft_weight_T, adv_weight_T, custom_weight_T: float32 component weights.
        advantage_T: float32, group-relative advantage of the rl component.
        anchor_advantage_T: float32, centred anchor score (3.2) of the adv component.
        old_logprob_T: float32, log-probs of the policy that the update started from. None: this is the first update,
            and the ratio is exp(logprob - stop_gradient(logprob)).
        ref_logprob_T: float32, log-probs of the frozen reference, for the kl component.
        correction_T: float32, constant factor of the rl and adv values: the importance correction between the
            rollout engine's log-probs and the trainer's. None means 1.
        rollout_logprob_T: float32, log-probs as the rollout engine gave them; enters the metrics only.
        sequence_T: int64, place of the token's sequence among those of the batch, -1 where the token is no unmasked
            token of a rollout. Ratios of level "sequence" are means over its equal entries.
    """

    target_T: Tensor
    temperature_T: Tensor | None = None
    rl_weight_T: Tensor | None = None
    kl_weight_T: Tensor | None = None
    sft_weight_T: Tensor | None = None
    adv_weight_T: Tensor | None = None
    custom_weight_T: Tensor | None = None
    advantage_T: Tensor | None = None
    anchor_advantage_T: Tensor | None = None
    old_logprob_T: Tensor | None = None
    ref_logprob_T: Tensor | None = None
    correction_T: Tensor | None = None
    rollout_logprob_T: Tensor | None = None
    sequence_T: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = tuple(self.target_T.shape)
        if len(tokens) != 1:
            raise ValueError(f"target_T: expected one dimension [T], got shape {tokens}")
        check_integers("target_T", self.target_T)
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_shape(field.name, value, tokens)
        for weight, needed in (
            ("rl_weight_T", "advantage_T"),
            ("kl_weight_T", "ref_logprob_T"),
            ("adv_weight_T", "anchor_advantage_T"),
        ):
            if getattr(self, weight) is not None and getattr(self, needed) is None:
                raise ValueError(f"{needed}: expected a tensor beside {weight}, got None")

    def weight(self, component: str) -> Tensor | None:
        return getattr(self, f"{component}_weight_T")

    def rows(self, rows: slice | Tensor) -> TokenFields:
        """The fields of some tokens: a slice, or the indices or mask of rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: value if value is None else value[rows] for name, value in values.items()}
        return replace(self, **cut)


# (log-prob [R], entropy [R] or None, fields of the R rows) -> loss of each row [R], float; differentiable in both.
CustomLoss = Callable[["Tensor", "Tensor | None", TokenFields], "Tensor"]


@dataclass(frozen=True)
class TokenLossSpec:
    """Scalars and flags of a token-weighted loss; `policy_loss` has the formulas.

    Attributes:
        clip_low, clip_high: epsilon of (3.3) below and above a ratio of 1.
        delta: upper limit of the ratio where the advantage is negative (dual clip); None for no limit.
        surrogate: "clip", the smaller of plain and clipped surrogate, or "cispo", the clipped ratio as a constant
            weight of the score function.
        ratio_level: "token", or "sequence": the ratio of every token is the geometric mean over its sequence.
        kl: estimator of the divergence from the reference, with d = ref_logprob - logprob: "k1" = -d,
            "k2" = d^2 / 2, "k3" = exp(d) - d - 1.
        kl_correction: whether the estimate is multiplied by the ratio, which makes its gradient that of the
            divergence.
        phi: whether the sft component is weighted by sg[p (1 - p)], p the token's probability (CHORD-phi).
        custom_loss: value of the custom component, of rows with weight only; not called where there are none.
        custom_scope: "token": it treats rows alone and is called on parts of the batch; "batch": it is called once
            with all rows of the micro-batch, at the price of a fourth GEMM in `linear_policy_loss`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    surrogate: Surrogate = "clip"
    ratio_level: RatioLevel = "token"
    kl: KLEstimator = "k3"
    kl_correction: bool = False
    phi: bool = False
    custom_loss: CustomLoss | None = None
    custom_scope: Literal["token", "batch"] = "token"

    def __post_init__(self) -> None:
        choices = {
            "surrogate": ("clip", "cispo"),
            "ratio_level": ("token", "sequence"),
            "kl": ("k1", "k2", "k3"),
            "custom_scope": ("token", "batch"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number that is not negative, got {getattr(self, name)}")
        if self.custom_loss is not None and not callable(self.custom_loss):
            raise ValueError(f"custom_loss: expected a function, got {self.custom_loss!r}")
        if self.delta is not None and not self.delta > 1.0 + self.clip_high:
            raise ValueError(f"delta: expected more than 1 + clip_high = {1.0 + self.clip_high:g}, got {self.delta:g}")

    @property
    def separable(self) -> bool:
        """Whether a token's gradient follows from that token alone, so that three GEMMs do."""
        return self.ratio_level == "token" and (self.custom_loss is None or self.custom_scope == "token")


def check_components(fields: TokenFields, spec: TokenLossSpec) -> None:
    """Refuse fields and a specification that do not belong together."""
    if fields.custom_weight_T is not None and spec.custom_loss is None:
        raise ValueError("custom_loss: expected a function beside custom_weight_T, got None")
    if spec.ratio_level == "sequence" and fields.sequence_T is None:
        raise ValueError("sequence_T: expected a tensor with ratio_level 'sequence', got None")
