"""`linear_policy_loss`: products by the vendor's library, the rest by `TritonGlue`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.distributed import ProcessGroup

from aapa.kernels.chunked import policy
from aapa.kernels.fields import TokenFields, TokenLossSpec
from aapa.kernels.triton.glue import GLUE


def linear_policy_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    fields: TokenFields,
    spec: TokenLossSpec,
    main_grad: Tensor | None,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
    sequence_parallel: bool,
    mode: Literal["fast", "lean"] = "fast",
) -> tuple[Tensor, dict[str, Tensor]]:
    return policy.linear_policy_loss(
        GLUE, hidden_TD, weight_VD, fields, spec, main_grad, vocab_size, tp_group, sequence_parallel, mode
    )
