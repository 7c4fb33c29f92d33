"""The LM head and the policy loss in one operation whose gradients are made in the forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aapa.kernels.checks import check_shape
from aapa.kernels.dispatch import run
from aapa.kernels.fields import TokenFields, TokenLossSpec, check_components
from aapa.kernels.linear_logprob import check_head_inputs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def linear_policy_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    fields: TokenFields,
    spec: TokenLossSpec,
    *,
    main_grad: Tensor | None = None,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
    sequence_parallel: bool = False,
    mode: Literal["fast", "lean"] = "fast",
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` of `linear_logprob`, with three GEMMs instead of four and never a [T, V] tensor.

    The gradient of a token-separable loss with respect to the logits depends on that token alone,
    dL/dz_v = g_t (1[v = y] - p_v) / temperature_t with g_t = dL/dlogprob_t, so it is made chunk by chunk while the
    logits are there: logits, then dHidden, then dWeight. Where it depends on other tokens (sequence-level ratios, a
    custom loss of scope "batch"), a pass for the statistics comes first and the logits are made again: four GEMMs.

    Gradients are made if and only if `torch.is_grad_enabled()` and an input requires them. Run the operation with an
    upstream gradient of exactly 1: what already sits in `main_grad` cannot be rescaled afterwards. It refuses to be
    recomputed by activation checkpointing, which would add to `main_grad` twice.

    Args:
        hidden_TD: [T, D], replicated over `tp_group` (split by rows with `sequence_parallel`).
        weight_VD: [V_local, D], this rank's rows of the head.
        fields, spec: the lowered objective.
        main_grad: [V_local, D] float32 accumulator of dWeight (or float64 for float64 inputs), added to in place; the
            autograd gradient of the weight is then zeros, which a tied embedding may safely add. None: dWeight is
            returned by autograd. It stays as it is where the weight requires no gradient.
        vocab_size: true vocabulary; rows at or above it are padding.
        tp_group: process group over which the vocabulary is split.
        sequence_parallel: `hidden_TD` holds T / ranks rows; the fields hold all T.
        mode: "fast" keeps a chunk's logits for its gradient. "lean" takes all rows at once and the vocabulary in
            blocks, twice: a block's logits give statistics, and are made again for its gradient. A fourth GEMM buys
            less memory: one block of logits and dHidden in float32, and dWeight written once. The reference computes
            both alike.
        backend: "auto" | "triton" | "native" | "reference".

    Returns:
        The scalar loss, attached to `hidden_TD` and `weight_VD`, and the metrics of `policy_loss`.

    Raises:
        ValueError: shapes that do not belong together, an unknown mode or backend, a `main_grad` of another type or on
            another device, and what `policy_loss` refuses.
        RuntimeError: called under activation checkpointing, or backward with an upstream gradient other than 1 while
            `main_grad` is given.
    """
    import torch.distributed as dist

    shards = dist.get_world_size(tp_group) if sequence_parallel and tp_group is not None else 1
    check_head_inputs(hidden_TD, weight_VD, fields.target_T, shards)
    if mode not in ("fast", "lean"):
        raise ValueError(f"mode: expected 'fast' or 'lean', got {mode!r}")
    check_components(fields, spec)
    if main_grad is not None:
        _check_main_grad(main_grad, hidden_TD, weight_VD)
        main_grad = main_grad if weight_VD.requires_grad else None
    layout = (vocab_size, tp_group, sequence_parallel, mode)
    loss, metrics = run(
        "linear_policy_loss", backend, hidden_TD.device, hidden_TD, weight_VD, fields, spec, main_grad, *layout
    )
    return loss, metrics


def _check_main_grad(main_grad: Tensor, hidden_TD: Tensor, weight_VD: Tensor) -> None:
    import torch

    check_shape("main_grad", main_grad, tuple(weight_VD.shape))
    allowed = (torch.float32, torch.float64) if hidden_TD.dtype == torch.float64 else (torch.float32,)
    if main_grad.dtype not in allowed:
        raise ValueError(f"main_grad: expected {' or '.join(map(str, allowed))}, got {main_grad.dtype}")
    if main_grad.device != weight_VD.device:
        raise ValueError(f"main_grad: expected on {weight_VD.device} as the weight, got on {main_grad.device}")
    if main_grad.shape[1] > 1 and main_grad.stride(1) != 1:
        raise ValueError(f"main_grad: expected contiguous rows, got strides {main_grad.stride()}")
