"""Hugging Face names and shapes of a Megatron shard's parameters, in both directions.

A local parameter corresponds to one or more Hugging Face tensors. `split` cuts this rank's part out of the whole
tensors; `join` puts the parts of all tensor-parallel ranks together again. Both only move numbers, so the round trip is
bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

_PLAIN = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
_ROWS = {
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter: its Hugging Face names and how its tensor-parallel parts lie in them."""

    names: tuple[str, ...]
    layout: str  # "whole" | "vocabulary" | "input" | "qkv" | "gate_up"


def entry(name: str, layer: int | None) -> Entry:
    """Entry of a parameter of `PolicyModel`; `layer` is its global layer index.

    Raises:
        KeyError: a parameter that has no Hugging Face counterpart.
    """
    if name == "embedding.word_embeddings.weight":
        return Entry(("model.embed_tokens.weight",), "vocabulary")
    if name == "output_layer.weight":
        return Entry(("lm_head.weight",), "vocabulary")
    if name == "decoder.final_layernorm.weight":
        return Entry(("model.norm.weight",), "whole")
    rest = name.split(".", 3)[3]
    prefix = f"model.layers.{layer}."
    if rest == "self_attention.linear_qkv.weight":
        return Entry(tuple(f"{prefix}self_attn.{x}_proj.weight" for x in "qkv"), "qkv")
    if rest == "mlp.linear_fc1.weight":
        return Entry((f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"), "gate_up")
    if rest in _ROWS:
        return Entry((prefix + _ROWS[rest],), "input")
    return Entry((prefix + _PLAIN[rest],), "whole")


def split(entry: Entry, whole: Mapping[str, Tensor], hf: PretrainedConfig, rank: int, ranks: int) -> Tensor:
    """This tensor-parallel rank's local parameter from whole Hugging Face tensors."""
    parts = [whole[name] for name in entry.names]
    if entry.layout == "whole":
        return parts[0]
    if entry.layout == "input":
        return parts[0].chunk(ranks, dim=1)[rank]
    if entry.layout == "gate_up":
        return torch.cat([part.chunk(ranks)[rank] for part in parts])
    if entry.layout == "vocabulary":
        rows = -(-parts[0].shape[0] // ranks)
        mine = parts[0][rank * rows : (rank + 1) * rows]
        return torch.cat([mine, mine.new_zeros(rows - mine.shape[0], mine.shape[1])])
    groups, dim = hf.num_key_value_heads, hf.head_dim
    by_group = [part.view(groups, -1, dim, part.shape[-1]) for part in parts]  # per group: its queries, key, value
    merged = torch.cat(by_group, dim=1).reshape(-1, parts[0].shape[-1])
    return merged.chunk(ranks)[rank]


def join(entry: Entry, shards: list[Tensor], hf: PretrainedConfig) -> dict[str, Tensor]:
    """Whole Hugging Face tensors from the local parameters of all tensor-parallel ranks, in their order."""
    first = entry.names[0]
    if entry.layout == "whole":
        return {first: shards[0]}
    if entry.layout == "input":
        return {first: torch.cat(shards, dim=1)}
    if entry.layout == "gate_up":
        halves = [shard.chunk(2) for shard in shards]
        return {name: torch.cat([half[i] for half in halves]) for i, name in enumerate(entry.names)}
    if entry.layout == "vocabulary":
        return {first: torch.cat(shards)[: hf.vocab_size]}
    groups, dim = hf.num_key_value_heads, hf.head_dim
    per_group = hf.num_attention_heads // groups
    merged = torch.cat(shards)
    by_group = merged.view(groups, per_group + 2, dim, merged.shape[-1])
    parts = by_group.split([per_group, 1, 1], dim=1)
    return {name: part.reshape(-1, merged.shape[-1]) for name, part in zip(entry.names, parts, strict=True)}
