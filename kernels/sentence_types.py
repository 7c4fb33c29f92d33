"""What the sentence operations take, as plain tensors: a segmentation table and a scorer's weights.

Shape legend: V vocabulary entries, C classes of entries, Q automaton states, D hidden size, R projected size,
H width of the hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SentenceTable:
    """A finite-state transducer over token ids that finds sentence boundaries.

    Every sequence starts in state 0 with no mark. A token of class c met in state q does, in this order:
    `cut_CQ[c, q]`: a sentence begins at the mark; `mark_CQ[c, q]`: the mark moves behind this token;
    the state becomes `next_CQ[c, q]`. The mark is where the sentence would end if the next one began; only
    its last place counts, so blanks can wait for what follows them. Where a sentence begins at the mark already, a cut
    does nothing.

    Attributes:
        class_V: int32, class of each token id.
        next_CQ: uint8, next state.
        cut_CQ: bool, whether a sentence begins at the mark.
        mark_CQ: bool, whether the mark moves behind the token.
    """

    class_V: Tensor
    next_CQ: Tensor
    cut_CQ: Tensor
    mark_CQ: Tensor

    def __post_init__(self) -> None:
        for name in ("cut_CQ", "mark_CQ"):
            shape = tuple(getattr(self, name).shape)
            if shape != tuple(self.next_CQ.shape):
                raise ValueError(f"{name}: expected shape {tuple(self.next_CQ.shape)}, got {shape}")
        if self.class_V.dim() != 1:
            raise ValueError(f"class_V: expected one dimension, got shape {tuple(self.class_V.shape)}")


@dataclass(frozen=True)
class SentenceHead:
    """Weights of the sentence score (2.1).

    The standardisation of the features is folded in: with the mean mu and standard deviation sigma of every
    feature and a learned projection W, `projection_RD` = W / sigma and `offset_R` = -W (mu / sigma), so that
    Pu = projection u + offset.

    Attributes:
        projection_RD: [R, D].
        offset_R: [R].
        hidden_weight_HF: [H, 4 R], columns in the order of (2.1): Pu, m, Pu - m, Pu * m.
        hidden_bias_H: [H].
        output_weight_H: [H].
        output_bias: [].
        tau: temperature of the soft alignment.
    """

    projection_RD: Tensor
    offset_R: Tensor
    hidden_weight_HF: Tensor
    hidden_bias_H: Tensor
    output_weight_H: Tensor
    output_bias: Tensor
    tau: float

    def __post_init__(self) -> None:
        projected, width = self.projection_RD.shape[0], self.hidden_bias_H.shape[0]
        expected = {
            "offset_R": (projected,),
            "hidden_weight_HF": (width, 4 * projected),
            "output_weight_H": (width,),
            "output_bias": (),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(getattr(self, name).shape)}")
        if not self.tau > 0:
            raise ValueError(f"tau: expected a positive number, got {self.tau}")

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, without tau."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tau"}

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> SentenceHead:
        """The head on a device, in a dtype; a tensor that is there already is not copied."""
        moved = {name: value.to(device, dtype) for name, value in self.tensors().items()}
        return SentenceHead(**moved, tau=self.tau)
