"""Our layer specification: Megatron's linear layers, and packed attention and RMSNorm without TransformerEngine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from aapa.engine.policy.attention import PackedAttention


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with Megatron's constructor. Rows are independent, so under sequence parallelism all it needs is
    the marker that has its weight gradient summed over the tensor-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class NoNorm(torch.nn.Identity):
    """Final norm of a trunk that ends at an inner layer."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()


class BiasedOutput(RowParallelLinear):
    """Attention's output projection with a bias, which Megatron has for all linear layers or for none of them."""

    def __init__(self, *args: Any, bias: bool, **kwargs: Any) -> None:
        super().__init__(*args, bias=True, **kwargs)


def block_spec(
    config: TransformerConfig, final_norm: bool = True, chunk: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage (of one chunk of it, where it has several), and the final norm."""
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.add_qkv_bias:
        attention.linear_proj = BiasedOutput
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    count = get_num_layers_to_build(config, vp_stage=chunk)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm if final_norm else NoNorm)
