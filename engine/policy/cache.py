"""Attention with a key-value cache: what the layers of the policy see while it decodes."""

from __future__ import annotations

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from aapa.engine.policy.attention import PackedSeq, uses_flash


class KeyValueCache:
    """Keys and values of all rows and layers of this rank: per layer two tensors [rows, capacity, heads, dim].

    Attributes:
        length_B: tokens of each row that are in the cache.
    """

    def __init__(self, lengths: list[int], capacity: int, device: torch.device) -> None:
        self.length_B = torch.tensor(lengths, device=device)
        self.longest, self.capacity = max(lengths), capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def rows(self) -> int:
        return len(self.length_B)

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, made at its first use for heads as in `like`, [T, heads, dim]."""
        if number not in self._layers:
            shape = (self.rows, self.capacity, *like.shape[1:])
            # Zeros, not whatever memory held: a NaN there would pass through the mask.
            self._layers[number] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[number]

    def advance(self) -> None:
        """Count the token that was put in last."""
        self.length_B += 1
        self.longest += 1


class Prefill(PackedSeq):
    """Whole prompts, packed in the order of the rows; their keys and values go into the cache."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, cache: KeyValueCache) -> None:
        """`cu_seqlens` may have one more sequence, which fills the tokens up and is not kept."""
        super().__init__(cu_seqlens, max_seqlen)
        self.cache = cache
        lengths = cache.length_B
        row_T = torch.repeat_interleave(torch.arange(cache.rows, device=lengths.device), lengths)
        place_T = torch.arange(len(row_T), device=lengths.device) - cu_seqlens.long()[row_T]
        self._slots = row_T * cache.capacity + place_T

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer_number: int, scale: float | None) -> Tensor:
        for stored, new in zip(self.cache.layer(layer_number, key), (key, value), strict=True):
            stored.view(-1, *new.shape[1:]).index_copy_(0, self._slots, new[: len(self._slots)])
        return super().attend(query, key, value, layer_number, scale)


class Decode(PackedSeqParams):
    """One token a row, which sees all of its row before it."""

    def __init__(self, cache: KeyValueCache) -> None:
        # Megatron makes its table of rotary angles this long.
        super().__init__(qkv_format="packed", max_seqlen_q=cache.capacity, max_seqlen_kv=cache.capacity)
        self.cache = cache
        self._rows = torch.arange(cache.rows, device=cache.length_B.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer_number: int, scale: float | None) -> Tensor:
        keys, values = self.cache.layer(layer_number, key)
        place_B = self.cache.length_B
        keys[self._rows, place_B], values[self._rows, place_B] = key, value
        if uses_flash(query):
            return _flash(query, keys, values, place_B + 1, scale)
        # [rows, heads, tokens, dim], as far as the longest row goes.
        keys, values = (stored[:, : self.cache.longest + 1].transpose(1, 2) for stored in (keys, values))
        seen = torch.arange(keys.shape[2], device=query.device) <= place_B[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, None],
            keys,
            values,
            attn_mask=seen[:, None, None],
            enable_gqa=query.shape[1] != key.shape[1],
            scale=scale,
        )
        return out[:, :, 0]


def _flash(query: Tensor, keys: Tensor, values: Tensor, length_B: Tensor, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_with_kvcache

    out = flash_attn_with_kvcache(
        query[:, None], keys, values, cache_seqlens=length_B.int(), softmax_scale=scale, causal=True
    )
    return out[:, 0]
