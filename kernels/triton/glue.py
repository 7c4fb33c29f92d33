"""The Triton side of the head's chunk loop."""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.chunked.glue import Glue, RowTerms
from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.triton.logit_rows import logits_gradient, row_statistics
from aapa.kernels.triton.policy_loss import custom_term, policy_terms


class TritonGlue(Glue):
    """Statistics in one read of the logits, gradients in their memory, the loss in one launch."""

    def statistics(self, logits_RV: Tensor, column_R: Tensor, scale_R: Tensor | None) -> Tensor:
        return row_statistics(logits_RV, column_R, scale_R)

    def gradient(self, logits_RV: Tensor, column_R: Tensor, terms: RowTerms, dtype: torch.dtype) -> Tensor:
        return logits_gradient(logits_RV, column_R, terms, dtype)

    def loss(
        self, logprob_R: Tensor, entropy_R: Tensor, token_fields: TokenFields, spec: TokenLossSpec, gradients: bool
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor | None] | None]:
        loss, metrics, grad_R = policy_terms(logprob_R, entropy_R, token_fields, spec)
        entropy_grad_R = None
        if token_fields.custom_weight_T is not None:
            with torch.set_grad_enabled(gradients):
                inputs = [x.detach().requires_grad_(gradients) for x in (logprob_R, entropy_R)]
                term = custom_term(inputs[0], inputs[1], token_fields, spec)
            assert term is not None
            loss, metrics["loss/custom"] = loss + term.detach(), term.detach()
            if term.requires_grad:
                own_R, entropy_grad_R = torch.autograd.grad(term, inputs, allow_unused=True)
                grad_R = grad_R if own_R is None else grad_R + own_R
        return loss, metrics, (grad_R, entropy_grad_R) if gradients else None


GLUE = TritonGlue()
