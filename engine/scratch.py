"""The configuration of a model that begins from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import Qwen3Config

from aapa.engine.recipe import ModelTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def scratch_config(model: ModelTable, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """A Qwen3 configuration of the recipe's shape, for the tokenizer's vocabulary."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=model.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        initializer_range=model.initializer_range,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
