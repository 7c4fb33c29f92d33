"""A tiny model directory with a chat template, and rows of one's own; shared by the tests of data and rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
COLORS = ["red", "green", "blue", "black", "white", "brown", "gold", "pink", "grey", "tan"]
THINGS = ["boat", "house", "door", "hat", "cup", "lamp", "chair", "road", "bird", "cat"]


def tokenizer(template: str | None = TEMPLATE, **special: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE; end of sequence is <eos>, not the template's <|im_end|>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([f"Describe a {c} {t}. The {t} is {c}." for c in COLORS for t in THINGS], trainer)
    given = {"pad_token": "<pad>", "eos_token": "<eos>"} | special
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in given.items() if v is not None})
    fast.chat_template = template
    return fast


def model_directory(directory: Path, context: int = 64, **kwargs: Any) -> Path:
    """A Qwen3 model of random weights with its tokenizer."""
    words = tokenizer(**kwargs)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def rows(count: int = 100, chat: bool = False) -> list[dict[str, Any]]:
    """Rows with two experts each."""
    made = []
    for number in range(count):
        color, thing = COLORS[number % 10], THINGS[number // 10 % 10]
        prompt: Any = f"Describe a {color} {thing}, {number}."
        experts = [f"The {thing} is {color}.", f"See: the {thing} is {color}."]
        made.append({"prompt": [{"role": "user", "content": prompt}] if chat else prompt, "expert": experts})
        made[-1]["answer"] = color
    return made


def write_rows(path: Path, content: list[Any]) -> Path:
    """A JSON object a line; bytes and texts go in as they are."""
    lines = [line if isinstance(line, bytes) else _text(line).encode() for line in content]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def _text(line: Any) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def table(model: Path, files: Any, kind: str = "sft", steps: int = 2, **data: Any) -> dict[str, Any]:
    """A recipe of one stage."""
    stage = {"name": "only", "steps": steps, "prompts_per_step": 4, "learning_rate": 1e-3, "objective": {"kind": kind}}
    if kind != "sft":
        stage["rewards"] = [{"function": "reward_of_rows:color"}]
        stage["objective"]["group_size"] = 2
    return {
        "name": "own",
        "model": {"source": str(model)},
        "data": {"files": files, "held_out": 0.2} | data,
        "rollout": {"max_new_tokens": 8},
        "evaluation": {"prompts": 4, "final_prompts": 4},
        "stages": [stage],
    }
