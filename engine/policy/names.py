"""Hugging Face names and shapes of a Megatron shard's parameters, in both directions, for Qwen3 and Llama.

A local parameter corresponds to one or more Hugging Face tensors. `split` cuts this rank's part out of the whole
tensors; `join` puts the parts of all tensor-parallel ranks together again. Both only move numbers, so the round trip is
bit-identical.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PLAIN = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    # Added after the sum over tensor-parallel ranks, so each has all of it.
    "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
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
        return Entry((EMBEDDING,), "vocabulary")
    if name == "output_layer.weight":
        return Entry((HEAD,), "vocabulary")
    if name == "decoder.final_layernorm.weight":
        return Entry(("model.norm.weight",), "whole")
    rest = name.split(".", 3)[3]
    prefix = f"model.layers.{layer}."
    if rest in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
        kind = rest.rsplit(".", 1)[1]
        return Entry(tuple(f"{prefix}self_attn.{x}_proj.{kind}" for x in "qkv"), "qkv")
    if rest == "mlp.linear_fc1.weight":
        return Entry((f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"), "gate_up")
    if rest in _ROWS:
        return Entry((prefix + _ROWS[rest],), "input")
    return Entry((prefix + _PLAIN[rest],), "whole")


def layer_parameters(hf: PretrainedConfig) -> list[str]:
    """Names of a layer's parameters behind its prefix, in the order in which the module has them."""
    biased, normed = hf.attention_bias, hf.model_type == "qwen3"
    return [
        "input_layernorm.weight",
        "self_attention.linear_proj.weight",
        *(["self_attention.linear_proj.bias"] if biased else []),
        "self_attention.linear_qkv.weight",
        *(["self_attention.linear_qkv.bias"] if biased else []),
        *(["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"] if normed else []),
        "pre_mlp_layernorm.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
    ]


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
    # Per group: its queries, key, value. Weights have one more dimension than biases.
    by_group = [part.reshape(groups, -1, dim, *part.shape[1:]) for part in parts]
    merged = torch.cat(by_group, dim=1).reshape(-1, *parts[0].shape[1:])
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
    by_group = merged.view(groups, per_group + 2, dim, *merged.shape[1:])
    parts = by_group.split([per_group, 1, 1], dim=1)
    return {name: part.reshape(-1, *merged.shape[1:]) for name, part in zip(entry.names, parts, strict=True)}


def expected_shapes(hf: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model in Hugging Face format, by its configuration alone."""
    width, inner, dim = hf.hidden_size, hf.intermediate_size, hf.head_dim
    queries, keys = hf.num_attention_heads * dim, hf.num_key_value_heads * dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    if hf.attention_bias:
        sizes = {"q": queries, "k": keys, "v": keys, "o": width}
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}
    if hf.model_type == "qwen3":
        layer |= {f"self_attn.{name}_norm.weight": (dim,) for name in "qk"}
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (hf.vocab_size, width)}
    for index in range(hf.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not hf.tie_word_embeddings:
        shapes[HEAD] = (hf.vocab_size, width)
    return shapes


def without_copies(names: Iterable[str], hf: PretrainedConfig) -> set[str]:
    """Names without what a file may hold in addition: a tied output layer, and tables of old Llama checkpoints that
    transformers leaves unread, too."""
    tied = {HEAD} if hf.tie_word_embeddings else set()
    return {name for name in names if name not in tied and not name.endswith(".rotary_emb.inv_freq")}


def tensor_problems(
    hf: PretrainedConfig, found: Mapping[str, tuple[int, ...]], where: Callable[[str], str] = lambda name: ""
) -> list[str]:
    """What is missing, unknown or of another shape among a model's tensors, a sentence each.

    Args:
        found: shapes by name; what `without_copies` leaves out may be among them.
        where: says in which file a tensor lies or, if it is missing, would be looked for, as " in FILE".
    """
    expected = expected_shapes(hf)
    unknown = without_copies(found, hf) - expected.keys()
    missing = [name for name in expected if name not in found]
    problems = []
    for name in missing:
        got = "none"
        if close := difflib.get_close_matches(name, unknown, n=1, cutoff=0.9):
            got = f"none, but {close[0]!r}{where(close[0])}, which may be the same tensor renamed"
        problems.append(f"expected a tensor {name!r} of shape {expected[name]}{where(name)}, got {got}")
    for name in sorted(unknown):
        problems.append(f"expected no tensor {name!r}{where(name)}, for a {hf.model_type} model has none of that name")
    for name, shape in expected.items():
        if name in found and tuple(found[name]) != shape:
            problems.append(f"expected {name!r}{where(name)} to have shape {shape}, got {tuple(found[name])}")
    return problems


def problem_text(field: str, problems: list[str], most: int = 5) -> str:
    """Problems as lines, the first few and how many more there are."""
    lines = [f"{field}: {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"{field}: … and {len(problems) - most} more")
    return "\n".join(lines)
