"""Tiny random models of every supported kind, saved as transformers saves them; also imported by worker scripts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen3Config

from aapa.batch import Sequence

FAMILIES = {"llama": LlamaConfig, "qwen3": Qwen3Config}
# 67 is not divisible by 2: the vocabulary is padded under tensor parallelism.
VOCABULARY = 67
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / heads
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
# What a configuration may say beside its family; every one of them for both families.
VARIANTS: dict[str, dict] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "one-group": {"num_key_value_heads": 1},
    "no-groups": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-5},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "yarn-attention": {"rope_parameters": YARN | {"attention_factor": 0.7, "beta_fast": 16.0, "truncate": False}},
    "yarn-mscale": {"rope_parameters": YARN | {"mscale": 1.2, "mscale_all_dim": 0.4}},
}


def config(family: str, **changes) -> PretrainedConfig:
    return FAMILIES[family](**(SHAPE | {"tie_word_embeddings": False} | json.loads(json.dumps(changes))))


def model(hf: PretrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Norms and biases, which start at one and zero, are shaken, so that a wrong mapping of them shows."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(hf, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made.to(dtype).eval()


def tokenizer(size: int = 40, **special) -> PreTrainedTokenizerFast:
    """One token a character, fewer than the model has rows."""
    characters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?"
    words = {"<pad>": 0, "<eos>": 1} | {c: i + 2 for i, c in enumerate(characters[: size - 2])}
    made = Tokenizer(models.WordLevel(words, unk_token=characters[0]))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, **({"eos_token": "<eos>", "pad_token": "<pad>"} | special))


def save(
    directory: Path, hf: PretrainedConfig, dtype: torch.dtype = torch.float32, shard: str = "5GB", seed: int = 0
) -> Path:
    """A directory as a user has it: weights, tokenizer with a chat template, generation settings."""
    model(hf, dtype, seed).save_pretrained(directory, max_shard_size=shard)
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    words.save_pretrained(directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 3], "temperature": 0.6}\n')
    return directory


def change_config(directory: Path, **changes) -> None:
    """Set keys of config.json; None removes one."""
    file = directory / "config.json"
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory's files, whatever their index says."""
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def sequences() -> list[Sequence]:
    """Longer than every original context of the scaled rotary embeddings."""
    g = torch.Generator().manual_seed(3)
    shapes = ((2, 9), (5, 80), (1, 40), (7, 110))
    return [
        Sequence(*(torch.randint(2, VOCABULARY, (size,), generator=g) for size in (prompt, response)), "expert")
        for prompt, response in shapes
    ]


def response_log_probs(model, sequence: Sequence) -> torch.Tensor:
    """[R] transformers' log-probs of the response's tokens, in the model's type."""
    tokens = torch.cat([sequence.prompt, sequence.response])[None]
    logits = model(tokens).logits[0, len(sequence.prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, sequence.response[:, None])[:, 0]
