"""Log-probs and entropy of an LM head without its [T, V] logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aapa.kernels.checks import check_integers, check_positive, check_shape
from aapa.kernels.dispatch import run

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def check_head_inputs(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, sequence_shards: int = 1) -> None:
    """Refuse shapes that do not belong together, naming the argument."""
    if hidden_TD.dim() != 2:
        raise ValueError(f"hidden_TD: expected two dimensions [T, D], got shape {tuple(hidden_TD.shape)}")
    if weight_VD.dim() != 2 or weight_VD.shape[1] != hidden_TD.shape[1]:
        raise ValueError(f"weight_VD: expected shape [V, {hidden_TD.shape[1]}], got {tuple(weight_VD.shape)}")
    check_shape("target_T", target_T, (hidden_TD.shape[0] * sequence_shards,))
    check_integers("target_T", target_T)


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
        target_T: [T] integers, all tokens on every rank. A target outside of the vocabulary has the log-prob NaN: where
            nothing is predicted use 0, or select the rows that matter, for NaN times 0 is NaN.
        temperature: float, or [T] float32: temperature is per token.
        entropy: whether to return the entropy.
        vocab_size: true vocabulary; rows at or above it are padding and count as minus infinity.
        tp_group: process group over which the vocabulary is split; None for one rank.
        sequence_parallel: `hidden_TD` holds T / ranks rows.
        backend: "auto" | "triton" | "native" | "reference".

    Returns:
        ([T] log-probs, [T] entropies or None) in float32, float64 for float64 inputs; on every rank of the group.

    Raises:
        ValueError: shapes that do not belong together, a temperature that is not positive (values of a tensor on a GPU
            are not looked at: the host would wait for them), an unknown backend.
    """
    import torch
    import torch.distributed as dist

    shards = dist.get_world_size(tp_group) if sequence_parallel and tp_group is not None else 1
    check_head_inputs(hidden_TD, weight_VD, target_T, shards)
    if isinstance(temperature, torch.Tensor):
        temperature_T: Tensor | None = temperature
        check_shape("temperature", temperature, tuple(target_T.shape))
        check_positive("temperature", temperature)
    elif temperature > 0:
        temperature_T = None if temperature == 1.0 else torch.full_like(target_T, temperature, dtype=torch.float32)
    else:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    layout = (vocab_size, tp_group, sequence_parallel)
    logprob_T, entropy_T = run(
        "linear_logprob", backend, hidden_TD.device, hidden_TD, weight_VD, target_T, temperature_T, entropy, *layout
    )
    return logprob_T, entropy_T
