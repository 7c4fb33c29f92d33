"""Tiny reward models of random weights, with the tokenizer of mini-IF and the separators."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, Qwen3Config, Qwen3ForSequenceClassification

from aapa.engine.tasks import load_task

SEPARATORS = ("<|reward|>", "[UNUSED_TOKEN_130]")
FAMILIES = {
    "llama": (LlamaConfig, LlamaForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
}


def reward_model(
    directory: Path,
    family: str = "llama",
    labels: int = 1,
    separators: tuple[str, ...] = SEPARATORS,
    longest: int = 512,
    seed: int = 0,
) -> Path:
    """A Hugging Face directory; its weights are large enough for scores to vary."""
    tokenizer = load_task("mini-if").tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(separators)})
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=longest,
        initializer_range=0.1,
        num_labels=labels,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model_class(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
