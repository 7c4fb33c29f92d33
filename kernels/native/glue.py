"""The head's glue in C++: vectors of the newest instruction set of the processor, threads over rows."""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.chunked.glue import Glue, RowTerms


class NativeGlue(Glue):
    def statistics(self, logits_RV: Tensor, column_R: Tensor, scale_R: Tensor | None) -> Tensor:
        found: Tensor = torch.ops.aapa.head_statistics(logits_RV, column_R, scale_R)
        return found

    def gradient(self, logits_RV: Tensor, column_R: Tensor, terms: RowTerms, dtype: torch.dtype) -> Tensor:
        torch.ops.aapa.head_gradient_(
            logits_RV,
            column_R,
            terms.scale_R,
            terms.lse_R,
            terms.logprob_grad_R,
            terms.entropy_R,
            terms.entropy_grad_R,
        )
        return logits_RV.to(dtype)
