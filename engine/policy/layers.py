"""Our layer specification: Megatron's linear layers, and packed attention and RMSNorm without TransformerEngine."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


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


class PackedSeq(PackedSeqParams):
    """Bounds of the packed sequences of a micro-batch.

    Megatron's own "thd" format applies rotary embeddings sequence by sequence; here positions are looked up instead
    (`PolicyModel`), so tokens travel as [T, 1, heads, dim] and only the core attention reads the bounds.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        super().__init__(
            qkv_format="packed",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=max_seqlen,
            max_seqlen_kv=max_seqlen,
        )
        self._padded_slots: Tensor | None = None

    def padded_slots(self) -> Tensor:
        """Place of each packed token in a [N x max_seqlen] padded layout, int64 [T]."""
        if self._padded_slots is None:
            lengths = self.cu_seqlens_q.diff().long()
            sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
            offset = torch.arange(int(lengths.sum()), device=lengths.device) - self.cu_seqlens_q.long()[sequence]
            self._padded_slots = sequence * self.max_seqlen_q + offset
        return self._padded_slots


class PackedAttention(MegatronModule):
    """Causal attention inside each packed sequence.

    On a GPU by flash-attn's varlen kernel where it is installed; else by one call of torch's SDPA on the sequences laid
    out side by side, padded on the right, where a causal mask alone keeps the padding out.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeq | None = None,
    ) -> Tensor:
        """[T, 1, heads, dim] → [T, 1, heads x dim]."""
        assert packed_seq_params is not None, "PackedAttention: expected packed_seq_params"
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if self.flash and query.dtype in (torch.float16, torch.bfloat16):
            out = self._flash(query, key, value, packed_seq_params)
        else:
            out = self._sdpa(query, key, value, packed_seq_params)
        return out.reshape(query.shape[0], 1, -1)

    def _flash(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeq) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        bounds, longest = packed.cu_seqlens_q, packed.max_seqlen_q
        return flash_attn_varlen_func(
            query, key, value, bounds, bounds, longest, longest, softmax_scale=self.softmax_scale, causal=True
        )

    def _sdpa(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeq) -> Tensor:
        slots, longest = packed.padded_slots(), packed.max_seqlen_q
        sequences = len(packed.cu_seqlens_q) - 1

        def side_by_side(tensor: Tensor) -> Tensor:
            padded = tensor.new_zeros(sequences * longest, *tensor.shape[1:]).index_copy(0, slots, tensor)
            return padded.view(sequences, longest, *tensor.shape[1:]).transpose(1, 2)

        out = torch.nn.functional.scaled_dot_product_attention(
            side_by_side(query),
            side_by_side(key),
            side_by_side(value),
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],
            scale=self.softmax_scale,
        )
        return out.transpose(1, 2).reshape(sequences * longest, *query.shape[1:]).index_select(0, slots)


def block_spec(config: TransformerConfig, final_norm: bool = True) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage, and the final norm."""
    layer = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.add_qkv_bias:
        attention.linear_proj = BiasedOutput
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    count = get_num_layers_to_build(config)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm if final_norm else NoNorm)
