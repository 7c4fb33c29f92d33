"""Which Hugging Face configurations the policy computes exactly, told from config.json alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

# model_type and the one class whose weights are read.
FAMILIES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Rotary embeddings whose angles follow from the position alone, and the keys without which transformers fails.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

Config = Mapping[str, Any]


def config_problems(config: Config) -> list[str]:
    """What keeps a model from being computed as transformers computes it, one sentence a problem; [] if nothing does.

    Args:
        config: config.json as it lies on disk, of transformers 4 or 5, or `PretrainedConfig.to_dict()`.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        known = " or ".join(repr(name) for name in FAMILIES)
        return [f"expected model_type {known}, got {kind!r}; train a checkpoint of one of these families"]
    problems: list[str] = []
    for check in _CHECKS:
        problems += check(config)
    return problems


def rope_table(config: Config) -> Mapping[str, Any]:
    """The rotary embedding's settings: `rope_parameters` of transformers 5, else `rope_scaling` of earlier ones."""
    # The order of transformers 5, which reads the older key first.
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return found if isinstance(found, Mapping) else {"rope_type": found}


def rope_type(config: Config) -> Any:
    table = rope_table(config)
    return table.get("rope_type") or table.get("type") or "default"


def _architecture(config: Config) -> list[str]:
    wanted, found = FAMILIES[config["model_type"]], config.get("architectures")
    problems = []
    if found and list(found) != [wanted]:
        advice = f"save the model as {wanted}"
        problems.append(f"expected architectures [{wanted!r}], got {list(found)!r}; {advice}")
    if config.get("auto_map"):
        advice = (
            "code that comes with a checkpoint is never run; remove auto_map if transformers' own class is the same"
        )
        problems.append(f"expected no auto_map, got {config['auto_map']!r}; {advice}")
    if config.get("quantization_config"):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        advice = "quantized weights cannot be trained; take the checkpoint before quantization"
        problems.append(f"expected no quantization_config, got quant_method {method!r}; {advice}")
    return problems


def _shape(config: Config) -> list[str]:
    problems = [
        f"expected {name} in config.json to be a whole number of at least 1, got {config.get(name)!r}"
        for name in _SIZES
        if not _whole(config.get(name))
    ]
    if problems:
        return problems
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if not _whole(groups) or heads % groups:
        problems.append(f"expected num_key_value_heads to be a divisor of {heads} heads, got {groups!r}")
    width = config.get("head_dim")
    if width is None and config["model_type"] == "llama":
        if config["hidden_size"] % heads:
            problems.append(f"expected hidden_size to be a multiple of {heads} heads, got {config['hidden_size']}")
        width = config["hidden_size"] // heads
    if width is not None and (not _whole(width) or width % 2):
        problems.append(f"expected head_dim to be even, for the rotary embedding turns pairs, got {width!r}")
    return problems


def _finite(config: Config) -> list[str]:
    values = {**config, **rope_table(config)}
    return [
        f"expected {name} in config.json to be a finite number, got {value}"
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _layers(config: Config) -> list[str]:
    problems = []
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"expected hidden_act 'silu', got {config['hidden_act']!r}; other activations are not built")
    if config.get("mlp_bias"):
        problems.append("expected mlp_bias false, got true; feed-forward layers with biases are not built")
    full = "train a checkpoint with full attention in every layer"
    llama = config["model_type"] == "llama"
    # Qwen3's configuration drops sliding_window unless use_sliding_window is set.
    if config.get("use_sliding_window") or (llama and config.get("sliding_window")):
        window = config.get("sliding_window")
        problems.append(f"expected no sliding window, got sliding_window {window!r}; {full}")
    others = sorted({str(kind) for kind in config.get("layer_types") or ()} - {"full_attention"})
    if others:
        problems.append(f"expected layer_types 'full_attention', got {', '.join(map(repr, others))}; {full}")
    return problems


def _rope(config: Config) -> list[str]:
    table, kind = rope_table(config), rope_type(config)
    if any(isinstance(value, Mapping) for value in table.values()):
        kinds = ", ".join(map(repr, table))
        return [f"expected one table of rope_parameters for all layers, got one each for {kinds}"]
    if kind not in ROPE_TYPES:
        advice = "another type is refused, as its angles change with the length of the sequence or it is unknown"
        return [f"expected rope_type {', '.join(map(repr, ROPE_TYPES))}, got {kind!r}; {advice}"]
    problems = [
        f"expected a number for {key} of rope_type {kind!r}, got {table.get(key)!r}"
        for key in ROPE_TYPES[kind]
        if not _number(table.get(key))
    ]
    theta = table.get("rope_theta", config.get("rope_theta"))
    if theta is not None and not _number(theta):
        problems.append(f"expected rope_theta to be a number above 0, got {theta!r}")
    given = (table.get("partial_rotary_factor"), config.get("partial_rotary_factor"))
    partial = next((value for value in given if value is not None), 1.0)
    if partial != 1.0:
        problems.append(f"expected partial_rotary_factor 1.0, got {partial!r}; rotary embeddings turn whole heads here")
    return problems


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


_CHECKS: tuple[Callable[[Config], list[str]], ...] = (_architecture, _shape, _finite, _layers, _rope)
