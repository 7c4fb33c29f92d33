"""What happens to a chunk of logits between the matrix products. Backends differ here and nowhere else.

Shape legend: R rows of a chunk, V columns (vocabulary rows of this rank, or a block of them), N parts.

With z = logits x scale (scale = 1 / temperature), the statistics of a row are four numbers:
maximum m of z, s = sum exp(z - m), u = sum exp(z - m) (z - m), and z at the target's column (0 where the target lies in
another part). A row without columns has m = -inf and zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.reference.policy_loss import loss_and_slopes

# Rows that the eager glue works on at once, so that its temporaries stay small beside the chunk.
EAGER_ROWS = 64


def merge(parts_N4R: Tensor) -> Tensor:
    """Statistics of rows whose columns lie in N parts, [4, R]; in a fixed order, so that every rank gets the same."""
    maximum_R = parts_N4R[:, 0].amax(0)
    # A part without columns is -inf below any other; a finite number keeps 0 x -inf out.
    shift_NR = (parts_N4R[:, 0] - maximum_R).clamp(min=-1e30)
    factor_NR = shift_NR.exp()
    sum_R = (factor_NR * parts_N4R[:, 1]).sum(0)
    product_R = (factor_NR * (parts_N4R[:, 2] + shift_NR * parts_N4R[:, 1])).sum(0)
    return torch.stack([maximum_R, sum_R, product_R, parts_N4R[:, 3].sum(0)])


def finish(stats_4R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log-prob of the target, entropy, log-sum-exp), each [R]."""
    maximum_R, sum_R, product_R, target_R = stats_4R
    log_sum_R = sum_R.log()
    return (target_R - maximum_R) - log_sum_R, log_sum_R - product_R / sum_R, maximum_R + log_sum_R


@dataclass(frozen=True)
class RowTerms:
    """What the gradient of rows needs beside their logits.

    Attributes:
        target_R: [R] int64, ids of the targets.
        scale_R: [R] in the dtype of the logits, 1 / temperature; None for 1.
        lse_R, entropy_R: [R], of the whole vocabulary.
        logprob_grad_R, entropy_grad_R: [R], dL/dlogprob and dL/dentropy; the latter None where nothing depends on it.
    """

    target_R: Tensor
    scale_R: Tensor | None
    lse_R: Tensor
    entropy_R: Tensor
    logprob_grad_R: Tensor
    entropy_grad_R: Tensor | None

    def at(self, rows: slice | Tensor | None) -> RowTerms:
        """Those of some rows; of all for None."""
        if rows is None:
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return RowTerms(**cut)


class Glue:
    """The glue in plain torch operations; backends override what they do faster."""

    def statistics(self, logits_RV: Tensor, column_R: Tensor, scale_R: Tensor | None) -> Tensor:
        """[4, R] statistics in the dtype of the logits.

        Args:
            logits_RV: [R, V] float32 or float64, rows contiguous; not changed.
            column_R: [R] int64, column of the target, -1 where it lies in another part.
            scale_R: [R] in the dtype of the logits, 1 / temperature; None for 1.
        """
        rows, columns = logits_RV.shape
        stats_4R = logits_RV.new_zeros(4, rows)
        if not columns:
            stats_4R[0] = float("-inf")
            return stats_4R
        for part in _parts(rows):
            z_RV = logits_RV[part] if scale_R is None else logits_RV[part] * scale_R[part, None]
            column = column_R[part]
            found_R = z_RV.gather(1, column.clamp(min=0)[:, None])[:, 0]
            maximum_R = z_RV.amax(1)
            z_RV = z_RV - maximum_R[:, None]
            exp_RV = z_RV.exp()
            stats_4R[0, part], stats_4R[1, part] = maximum_R, exp_RV.sum(1)
            stats_4R[2, part] = exp_RV.mul_(z_RV).sum(1)
            stats_4R[3, part] = torch.where(column >= 0, found_R, 0.0)
        return stats_4R

    def gradient(self, logits_RV: Tensor, column_R: Tensor, terms: RowTerms, dtype: torch.dtype) -> Tensor:
        """d loss / d logits, [R, V] in `dtype`; may overwrite the logits.

        With p = exp(z - lse), g = dL/dlogprob and e = dL/dentropy:
        scale (g (1[v = column] - p_v) - e p_v (z_v - lse + entropy)).

        Args:
            logits_RV, column_R: as in `statistics`.
            terms: of the same rows.
            dtype: that of the products: of the logits, or half precision.
        """
        for part in _parts(logits_RV.shape[0]):
            log_p_RV, column = logits_RV[part], column_R[part]
            term = terms.at(part)
            scale_R = log_p_RV.new_ones(len(column)) if term.scale_R is None else term.scale_R
            log_p_RV.mul_(scale_R[:, None]).sub_(term.lse_R[:, None])
            grad_R = term.logprob_grad_R * scale_R
            if term.entropy_grad_R is None:
                log_p_RV.exp_().mul_(-grad_R[:, None])
            else:
                p_RV, spread_R = log_p_RV.exp(), term.entropy_grad_R * scale_R
                log_p_RV.add_(term.entropy_R[:, None]).mul_(spread_R[:, None]).add_(grad_R[:, None])
                log_p_RV.mul_(p_RV).neg_()
            if log_p_RV.shape[1]:
                at_target_R = torch.where(column >= 0, grad_R, 0.0)
                log_p_RV.scatter_add_(1, column.clamp(min=0)[:, None], at_target_R[:, None])
        return logits_RV.to(dtype)

    def loss(
        self, logprob_R: Tensor, entropy_R: Tensor, token_fields: TokenFields, spec: TokenLossSpec, gradients: bool
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor | None] | None]:
        """As `loss_and_slopes`: of some rows, on [R] vectors only."""
        return loss_and_slopes(logprob_R, entropy_R, token_fields, spec, gradients)


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + EAGER_ROWS) for start in range(0, rows, EAGER_ROWS))
