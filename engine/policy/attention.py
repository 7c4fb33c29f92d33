"""Core attention over packed sequences: flash-attn where it is installed on a GPU, else torch's SDPA."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from aapa.engine.policy.context import ContextSplit, Piece


class PackedSeq(PackedSeqParams):
    """Bounds of the packed sequences of a micro-batch.

    Megatron's own "thd" format applies rotary embeddings sequence by sequence; here positions are looked up instead
    (`PolicyModel`), so tokens travel as [T, 1, heads, dim] and only the core attention reads the bounds.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, context: ContextSplit | None = None) -> None:
        super().__init__(
            qkv_format="packed",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=max_seqlen,
            max_seqlen_kv=max_seqlen,
        )
        self.context = context
        self._padded_slots: Tensor | None = None

    def padded_slots(self) -> Tensor:
        """Place of each packed token in a [N x max_seqlen] padded layout, int64 [T]."""
        if self._padded_slots is None:
            self._padded_slots = padded_slots(self.cu_seqlens_q, self.max_seqlen_q)
        return self._padded_slots

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer_number: int, scale: float | None) -> Tensor:
        """Causal attention inside each sequence, [T, heads, dim]."""
        if self.context is not None:
            key, value = self.context.gather(key), self.context.gather(value)
            parts = [
                _piece_attention(query[piece.queries], key[piece.keys], value[piece.keys], piece, scale)
                for piece in self.context.pieces
            ]
            return torch.cat(parts)
        if uses_flash(query):
            bounds, longest = self.cu_seqlens_q, self.max_seqlen_q
            return _flash(query, key, value, bounds, bounds, longest, longest, scale)
        return self._sdpa(query, key, value, scale)

    def _sdpa(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """One call on the sequences laid out side by side, padded on the right, where a causal mask alone keeps the
        padding out."""
        slots, longest = self.padded_slots(), self.max_seqlen_q
        sequences = len(self.cu_seqlens_q) - 1
        out = torch.nn.functional.scaled_dot_product_attention(
            _side_by_side(query, slots, sequences, longest),
            _side_by_side(key, slots, sequences, longest),
            _side_by_side(value, slots, sequences, longest),
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],
            scale=scale,
        )
        return out.transpose(1, 2).reshape(sequences * longest, *query.shape[1:]).index_select(0, slots)


class PackedAttention(MegatronModule):
    """Megatron's interface of the core attention; what is attended to is the business of `packed_seq_params`."""

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
        self.layer_number, self.softmax_scale = layer_number, softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """[T, 1, heads, dim] → [T, 1, heads x dim]."""
        assert packed_seq_params is not None, "PackedAttention: expected packed_seq_params"
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        out = packed_seq_params.attend(query, key, value, self.layer_number, self.softmax_scale)
        return out.reshape(query.shape[0], 1, -1)


def uses_flash(query: Tensor) -> bool:
    """Whether flash-attn computes attention of this type on this device."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and query.is_cuda and importlib.util.find_spec("flash_attn") is not None


def padded_slots(cu_seqlens: Tensor, longest: int) -> Tensor:
    lengths = cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    offset = torch.arange(int(lengths.sum()), device=lengths.device) - cu_seqlens.long()[sequence]
    return sequence * longest + offset


def _side_by_side(tensor: Tensor, slots: Tensor, sequences: int, longest: int) -> Tensor:
    """Packed [T, heads, dim] → padded [sequences, heads, longest, dim]."""
    padded = tensor.new_zeros(sequences * longest, *tensor.shape[1:]).index_copy(0, slots, tensor)
    return padded.view(sequences, longest, *tensor.shape[1:]).transpose(1, 2)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    max_queries: int,
    max_keys: int,
    scale: float | None,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query, key, value, cu_queries, cu_keys, max_queries, max_keys, softmax_scale=scale, causal=True
    )


def _piece_attention(query: Tensor, key: Tensor, value: Tensor, piece: Piece, scale: float | None) -> Tensor:
    """Queries of a chunk on all keys before them; flash-attn, too, aligns the mask with the last key."""
    if uses_flash(query):
        return _flash(query, key, value, piece.cu_queries, piece.cu_keys, piece.max_queries, piece.max_keys, scale)
    sequences = len(piece.cu_queries) - 1
    query_slots = padded_slots(piece.cu_queries, piece.max_queries)
    key_slots = padded_slots(piece.cu_keys, piece.max_keys)
    earlier = (piece.cu_keys.diff() - piece.cu_queries.diff())[:, None, None]
    rows = torch.arange(piece.max_queries, device=query.device)[:, None]
    seen = torch.arange(piece.max_keys, device=query.device) <= rows + earlier
    out = torch.nn.functional.scaled_dot_product_attention(
        _side_by_side(query, query_slots, sequences, piece.max_queries),
        _side_by_side(key, key_slots, sequences, piece.max_keys),
        _side_by_side(value, key_slots, sequences, piece.max_keys),
        attn_mask=seen[:, None],
        enable_gqa=query.shape[1] != key.shape[1],
        scale=scale,
    )
    return out.transpose(1, 2).reshape(sequences * piece.max_queries, *query.shape[1:]).index_select(0, query_slots)
