"""Directories that cannot be trained exactly are refused by name, with what to do, and with exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aapa.engine.errors import UserError
from aapa.engine.hf_directory import SafetensorsWeights, read_config, read_tokenizer
from aapa.engine.policy.families import config_problems
from aapa.engine.recipe import RecipeError, load_recipe

sys.path.insert(0, str(Path(__file__).parent))
import models

RECIPE = """\
name = "small"
[[stages]]
name = "sft"
steps = 1
learning_rate = 1e-4
objective = { kind = "sft" }
"""
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return models.save(tmp_path_factory.mktemp("saved") / "model", models.config("llama"))


@pytest.fixture
def source(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "source")


def read(directory: Path) -> None:
    """As a run does."""
    config = read_config(directory)
    SafetensorsWeights(directory, config=config)
    read_tokenizer(directory, config)


def refusal(directory: Path) -> str:
    """What reading the directory says; the test fails if it says nothing."""
    with pytest.raises(UserError) as caught:
        read(directory)
    text = str(caught.value)
    lines = text.split("\n")
    assert all(line.startswith("model.source: ") and ("expected" in line or ": … and" in line) for line in lines)
    return text


def rewrite(directory: Path, change) -> None:
    file = directory / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


CONFIGURATIONS = {
    "architecture": ({"model_type": "mistral"}, "expected model_type 'llama' or 'qwen3', got 'mistral'; train a"),
    "no type": ({"model_type": None}, "expected model_type 'llama' or 'qwen3', got None"),
    "head": ({"architectures": ["LlamaForSequenceClassification"]}, "save the model as LlamaForCausalLM"),
    "code": ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "code that comes with a checkpoint is never run"),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq"}},
        "got quant_method 'gptq'; quantized",
    ),
    "window": ({"sliding_window": 64}, "expected no sliding window, got sliding_window 64; train a checkpoint"),
    "layer types": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types 'full_attention', got",
    ),
    "mlp": ({"mlp_bias": True}, "expected mlp_bias false, got true"),
    "activation": ({"hidden_act": "gelu"}, "expected hidden_act 'silu', got 'gelu'"),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "got 'dynamic'; another type is",
    ),
    "old dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "got 'dynamic'; another"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "got 'longrope'"),
    "invented": ({"rope_parameters": {"rope_type": "spiral"}}, "got 'spiral'"),
    "no factor": (
        {"rope_parameters": {"rope_type": "linear"}},
        "number for factor of rope_type 'linear'",
    ),
    "partial": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor 1.0",
    ),
    "by layer": ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one table of rope_parameters"),
    "groups": ({"num_key_value_heads": 3}, "expected num_key_value_heads to be a divisor of 4 heads, got 3"),
    "odd heads": ({"head_dim": 7}, "expected head_dim to be even"),
    "no layers": ({"num_hidden_layers": "many"}, "expected num_hidden_layers in config.json to be a whole number"),
    "not finite": (
        {"rms_norm_eps": float("nan")},
        "expected rms_norm_eps in config.json to be a finite number",
    ),
    "type": ({"dtype": "float99"}, "expected a configuration that transformers reads"),
    "no number": ({"rms_norm_eps": "small"}, "expected a configuration that transformers reads"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_by_name(name, source):
    changes, wanted = CONFIGURATIONS[name]
    models.change_config(source, **changes)
    text = refusal(source)
    assert wanted in text and "config.json" in text


def test_a_sliding_window_of_qwen3_that_is_switched_off_is_none(tmp_path):
    source = models.save(tmp_path / "model", models.config("qwen3"))
    models.change_config(source, sliding_window=64, use_sliding_window=False)
    read_config(source)
    models.change_config(source, use_sliding_window=True)
    assert "expected no sliding window" in refusal(source)


@pytest.mark.parametrize("text", ["{", "[]", '"llama"'])
def test_a_config_that_is_none(text, source):
    (source / "config.json").write_text(text)
    assert "config.json" in refusal(source)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_generation_settings_that_are_none(text, source):
    (source / "generation_config.json").write_text(text)
    assert "generation_config.json" in refusal(source)


def test_weights_that_are_not_finite(source):
    rewrite(source, lambda state: state[UP].view(-1)[-1:].fill_(float("nan")))
    with pytest.raises(UserError, match=rf"finite numbers in '{UP}' of .*/model.safetensors, got NaN"):
        SafetensorsWeights(source, config=read_config(source))[UP]


def test_no_directory(tmp_path):
    assert "expected a Hugging Face directory with config.json" in refusal(tmp_path / "nowhere")


def test_missing_extra_misshapen_and_renamed_tensors(source):
    rewrite(source, lambda state: state.pop(UP))
    assert f"expected a tensor '{UP}' of shape (48, 32) in model.safetensors, got none" in refusal(source)
    rewrite(source, lambda state: state.update({UP: torch.zeros(48, 31)}))
    assert f"expected '{UP}' in model.safetensors to have shape (48, 32), got (48, 31)" in refusal(source)
    third = UP.replace("layers.1", "layers.2")
    rewrite(source, lambda state: state.update({UP: torch.zeros(48, 32), third: torch.zeros(48, 32)}))
    assert "expected no tensor 'model.layers.2.mlp.up_proj.weight' in model.safetensors, for a llama" in refusal(source)


def test_a_renamed_tensor_is_recognised(source):
    rewrite(source, lambda state: state.update({UP.replace("up_proj", "up"): state.pop(UP)}))
    text = refusal(source)
    assert f"expected a tensor '{UP}'" in text
    assert "got none, but 'model.layers.1.mlp.up.weight' in model.safetensors, which may be the same tensor" in text


def test_many_problems_are_counted(source):
    rewrite(source, lambda state: [state.pop(name) for name in list(state) if "layers.1" in name])
    text = refusal(source)
    assert len(text.split("\n")) == 6 and "… and 4 more" in text


def test_a_quantized_tensor_is_named(source):
    rewrite(source, lambda state: state.update({UP: torch.zeros(48, 32, dtype=torch.int8)}))
    assert f"expected '{UP}' in model.safetensors of type F64, F32, F16, BF16, got I8; quantized" in refusal(source)


def test_an_output_layer_that_contradicts_the_configuration(source):
    models.change_config(source, tie_word_embeddings=True)
    assert "expected 'lm_head.weight' in model.safetensors to equal 'model.embed_tokens.weight'" in refusal(source)
    rewrite(source, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in SafetensorsWeights(source, config=read_config(source))  # a copy is none of its own
    rewrite(source, lambda state: state.pop("lm_head.weight"))
    models.change_config(source, tie_word_embeddings=False)
    assert "expected a tensor 'lm_head.weight'" in refusal(source)


def test_tables_of_old_llama_checkpoints_are_left_unread(source):
    rewrite(source, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert len(SafetensorsWeights(source, config=read_config(source))) == 2 + 1 + 2 * 9


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pytorch_model.bin", "a pickle, which can run code and is never opened; where you trust it, convert it once"),
        ("consolidated.00.pth", "a pickle"),
        ("model.gguf", "take the checkpoint that it was converted from"),
        ("adapter_model.safetensors", "merge the adapter into its base model first"),
        ("model-00001-of-00002.safetensors", "give shards their model.safetensors.index.json"),
    ],
)
def test_what_lies_there_instead_of_weights(name, wanted, source):
    (source / "model.safetensors").rename(source / name)
    text = refusal(source)
    assert f"got neither but {name}" in text and wanted in text


def test_an_empty_directory_has_neither(source):
    (source / "model.safetensors").unlink()
    assert refusal(source).endswith("got neither")


def test_a_truncated_file(source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "expected a readable safetensors file, got" in refusal(source)


def test_shards_that_disagree_with_their_index(tmp_path):
    source = models.save(tmp_path / "model", models.config("qwen3"), shard="9KB")
    index = source / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    places = table["weight_map"]
    assert len(set(places.values())) > 3
    SafetensorsWeights(source, config=read_config(source))

    def with_index(changes: dict) -> str:
        kept = {name: file for name, file in (places | changes).items() if file is not None}
        index.write_text(json.dumps(table | {"weight_map": kept}))
        return refusal(source)

    first = next(iter(places.values()))
    assert "got none" in with_index({UP: None})
    assert f"expected a tensor 'model.extra' in {source / first}" in with_index({"model.extra": first})
    assert "got no file '../away.safetensors'" in with_index({UP: "../away.safetensors"})
    assert "name a file for each tensor" in with_index({UP: 3})
    index.write_text("{}")
    assert "expected a readable index in" in refusal(source)
    index.write_text(json.dumps(table))
    (source / first).unlink()
    assert f"got no file {first!r}; copy it, too" in refusal(source)


def test_tokenizers_that_do_not_suit(source):
    models.tokenizer(58).save_pretrained(source)
    models.change_config(source, vocab_size=50)

    def fewer_rows(state: dict) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = state[name][:50].clone()

    rewrite(source, fewer_rows)
    assert "expected at most vocab_size = 50 tokens in the tokenizer of" in refusal(source)
    for file in source.glob("tokenizer*"):
        file.unlink()
    assert "expected tokenizer files in" in refusal(source)


def test_recipes_are_refused_before_any_device_is_touched(source, tmp_path):
    """All problems at once, each with the field's name and the file."""
    models.change_config(source, mlp_bias=True, hidden_act="gelu")
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.toml", ["--model.source", str(source)])
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and all(f"model.source: {source}/config.json: expected" in line for line in lines)


def test_the_program_says_it_without_a_traceback(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    (tmp_path / "r.toml").write_text(RECIPE)
    command = [sys.executable, "-W", "ignore", "-m", "aapa.engine", "train", "r.toml", "--model.source", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "model.source: expected model.safetensors or model.safetensors.index.json" in done.stderr


def test_every_supported_configuration_has_no_problems():
    for family in models.FAMILIES:
        for changes in models.VARIANTS.values():
            assert config_problems(models.config(family, **changes).to_dict()) == []
