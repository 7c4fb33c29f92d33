"""How much arithmetic an update is, for throughput figures that compare with other systems'."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PretrainedConfig

# Dense bf16 tensor-core peaks in FLOP/s, by a part of the device's name; the makers' data sheets.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def forward_flops(hf: PretrainedConfig, lengths: Iterable[int]) -> float:
    """FLOP of one forward pass over sequences of these lengths, in tokens.

    2 x (weights of the matrix products) x tokens, plus 2 x layers x heads x head_dim x length^2 for causal attention
    (query times key and weights times value, half of each masked). The LM head counts, the embedding look-up does not.
    """
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    heads, groups = hf.num_attention_heads, hf.num_key_value_heads
    attention = hf.hidden_size * head_dim * (2 * heads + 2 * groups)
    layer = attention + 3 * hf.hidden_size * hf.intermediate_size
    weights = hf.num_hidden_layers * layer + hf.hidden_size * hf.vocab_size
    total = 0.0
    for length in lengths:
        total += 2.0 * weights * length + 2.0 * hf.num_hidden_layers * heads * head_dim * length**2
    return total


def update_flops(hf: PretrainedConfig, lengths: Iterable[int]) -> float:
    """FLOP of a forward and a backward pass, 3 x the forward pass; what is recomputed is no useful work."""
    return 3.0 * forward_flops(hf, lengths)


def peak_flops(device: torch.device) -> float | None:
    """Stated bf16 peak of a GPU in FLOP/s; None where the table does not know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
