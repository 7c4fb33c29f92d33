"""Log-probs and entropy of an LM head without its [T, V] logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.dispatch import resolve

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def check_head_inputs(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, sequence_shards: int = 1) -> None:
    """Refuse shapes that do not belong together, naming the argument."""
    if hidden_TD.dim() != 2:
        raise ValueError(f"hidden_TD: expected two dimensions [T, D], got shape {tuple(hidden_TD.shape)}")
    if weight_VD.dim() != 2 or weight_VD.shape[1] != hidden_TD.shape[1]:
        raise ValueError(f"weight_VD: expected shape [V, {hidden_TD.shape[1]}], got {tuple(weight_VD.shape)}")
    tokens = hidden_TD.shape[0] * sequence_shards
    if tuple(target_T.shape) != (tokens,):
        raise ValueError(f"target_T: expected shape ({tokens},), got {tuple(target_T.shape)}")


def linear_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
    sequence_parallel: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target token, and the entropy of its distribution, differentiable in both.

    z_t = W h_t / temperature_t;  logprob_t = z_t[target_t] - logsumexp(z_t);  entropy_t = -sum_v p_v log p_v.

    Args:
        hidden_TD: [T, D] float, last hidden states, replicated over `tp_group` (split by rows with
            `sequence_parallel`). Its gradient is complete, summed over the vocabulary shards.
        weight_VD: [V_local, D] float, this rank's rows of the head. Its gradient is local.
        target_T: [T] int64, all tokens on every rank.
        temperature: float, or [T] float32: temperature is per token.
        entropy: whether to return the entropy.
        vocab_size: true vocabulary; rows at or above it are padding and count as minus infinity.
        tp_group: process group over which the vocabulary is split; None for one rank.
        sequence_parallel: `hidden_TD` holds T / ranks rows.
        backend: "auto" | "triton" | "native" | "reference".

    Returns:
        ([T] log-probs, [T] entropies or None) in float32, float64 for float64 inputs; on every rank of the group.

    Raises:
        ValueError: shapes that do not belong together, a temperature that is not positive, an unknown backend.
    """
    import torch
    import torch.distributed as dist

    shards = dist.get_world_size(tp_group) if sequence_parallel and tp_group is not None else 1
    check_head_inputs(hidden_TD, weight_VD, target_T, shards)
    if isinstance(temperature, torch.Tensor):
        temperature_T: Tensor | None = temperature
        if temperature.shape != target_T.shape:
            raise ValueError(f"temperature: expected shape {tuple(target_T.shape)}, got {tuple(temperature.shape)}")
    elif temperature > 0:
        temperature_T = None if temperature == 1.0 else torch.full_like(target_T, temperature, dtype=torch.float32)
    else:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    return resolve("linear_logprob", backend, hidden_TD.device).linear_logprob(
        hidden_TD, weight_VD, target_T, temperature_T, entropy, vocab_size, tp_group, sequence_parallel
    )
