"""`aapa convert` against Megatron's own loading and saving, in real processes, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import models

from aapa.engine.cli import main
from aapa.engine.hf_directory import read_config

CASES = {
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}, torch.bfloat16),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}, torch.float32),
    "llama-tied": ("llama", {"tie_word_embeddings": True}, torch.float32),
    "llama-biases": ("llama", {"attention_bias": True, "num_hidden_layers": 4}, torch.float16),
}


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def to_megatron(source: Path, target: Path, *words: object) -> int:
    return convert("--from", "hf", "--to", "megatron", source, target, *words)


def to_hf(source: Path, target: Path, *words: object) -> int:
    return convert("--from", "megatron", "--to", "hf", source, target, *words)


def same_directory(got: Path, want: Path) -> None:
    files = sorted(file.name for file in want.iterdir())
    assert sorted(file.name for file in got.iterdir()) == files
    for name in files:
        assert (got / name).read_bytes() == (want / name).read_bytes(), name


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name, (family, changes, dtype) in CASES.items():
        models.save(folder / name, models.config(family, **changes), dtype)
    return folder


@pytest.fixture(scope="module")
def checkpoint(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "untied"
    assert to_megatron(sources / "qwen3-untied", folder, "--tp", 2, "--pp", 2) == 0
    return folder


@pytest.mark.parametrize("name", CASES)
def test_tp2_pp2_and_back_is_bit_identical(sources, tmp_path, name):
    assert to_megatron(sources / name, tmp_path / "cut", "--tp", 2, "--pp", 2) == 0
    assert to_hf(tmp_path / "cut", tmp_path / "back") == 0
    same_directory(tmp_path / "back", sources / name)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_megatron_itself_loads_and_saves_the_same(sources, launch, tmp_path):
    """Real models at TP2 x PP2, by `sharded_state_dict` and `dist_checkpointing`, in both directions."""
    for name in CASES:
        assert to_megatron(sources / name, tmp_path / "cut" / name, "--tp", 2, "--pp", 2) == 0
    launch("convert_worker.py", 4, 2, 2, sources, tmp_path / "cut", tmp_path / "megatron")
    for name in CASES:
        for saved in (name, f"{name}-by-us"):
            again = tmp_path / "again" / saved
            assert to_hf(tmp_path / "megatron" / saved, again, "--config", sources / name, "--unverified") == 0
            same_directory(again, sources / name)


def test_the_manifest_says_what_it_was_cut_for(checkpoint):
    facts = json.loads((checkpoint / "manifest.json").read_text())
    assert facts["layout"] == {"tensor": 2, "pipeline": 2}
    assert {"common.pt", ".metadata", "metadata.json", "hf/config.json", "hf/tokenizer.json"} <= facts["files"].keys()
    assert not list(checkpoint.parent.glob(".*")), "no staging is left"


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "hf/config.json", "common.pt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_refused_by_name(checkpoint, tmp_path, capsys, name, damage):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    if damage == "delete":
        (copy / name).unlink()
    elif damage == "truncate":
        (copy / name).write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    assert to_hf(copy, tmp_path / "out") == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_too_many_is_refused(checkpoint, tmp_path, capsys):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "more.pt").write_bytes(b"x")
    assert to_hf(copy, tmp_path / "out") == 2
    assert "more.pt" in capsys.readouterr().err


class Planted:
    """Pickled, it is a call."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_planted_pickle_is_not_run(checkpoint, tmp_path, capsys):
    copy, traces = Path(shutil.copytree(checkpoint, tmp_path / "copy")), tmp_path / "traces"
    (copy / "manifest.json").unlink()
    index = pickle.loads((copy / ".metadata").read_bytes())
    index.planner_data = Planted(traces)
    (copy / ".metadata").write_bytes(pickle.dumps(index))
    assert to_hf(copy, tmp_path / "out") == 2
    assert "manifest.json" in capsys.readouterr().err
    assert to_hf(copy, tmp_path / "out", "--unverified") == 2
    assert "posix.mkdir" in capsys.readouterr().err
    assert not traces.exists()
    pickle.loads((copy / ".metadata").read_bytes())
    assert traces.exists(), "the pickle would have done something"


def test_an_index_that_leads_out_of_the_directory_is_refused(checkpoint, tmp_path, capsys):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    index = pickle.loads((copy / ".metadata").read_bytes())
    next(iter(index.storage_data.values())).relative_path = "../elsewhere.distcp"
    (copy / ".metadata").write_bytes(pickle.dumps(index))
    assert to_hf(copy, tmp_path / "out", "--unverified") == 2
    assert "../elsewhere.distcp" in capsys.readouterr().err


def change_index(folder: Path, change) -> None:
    (folder / "manifest.json").unlink()
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


QKV = "decoder.layers.self_attention.linear_qkv.weight"


def renamed(index) -> None:
    index.state_dict_metadata["decoder.layers.attention.qkv"] = index.state_dict_metadata.pop(QKV)


def missing(index) -> None:
    del index.state_dict_metadata["output_layer.weight"]


def extra(index) -> None:
    index.state_dict_metadata["decoder.layers.router.weight"] = index.state_dict_metadata[QKV]


def misshapen(index) -> None:
    entry = index.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"]
    entry.size = torch.Size((*entry.size[:-1], entry.size[-1] + 1))


def short_vocabulary(index) -> None:
    entry = index.state_dict_metadata["embedding.word_embeddings.weight"]
    entry.size = torch.Size((models.VOCABULARY - 1, entry.size[1]))


def a_part_in_no_file(index) -> None:
    index.state_dict_metadata[QKV].chunks.pop()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (renamed, [QKV, "decoder.layers.attention.qkv"]),
        (missing, ["output_layer.weight"]),
        (extra, ["decoder.layers.router.weight"]),
        (misshapen, ["decoder.layers.mlp.linear_fc2.weight"]),
        (short_vocabulary, ["embedding.word_embeddings.weight"]),
        (a_part_in_no_file, [QKV]),
    ],
)
def test_wrong_tensors_are_refused_by_name(checkpoint, tmp_path, capsys, change, names):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    change_index(copy, change)
    assert to_hf(copy, tmp_path / "out", "--unverified") == 2
    said = capsys.readouterr().err
    assert all(repr(name) in said for name in names), said
    assert not (tmp_path / "out").exists()


def test_hugging_face_tensors_are_refused_by_name(sources, tmp_path, capsys):
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(sources / "qwen3-untied", tmp_path / "copy"))
    tensors = models.tensors(copy)
    tensors["model.layers.0.mlp.gate_projection.weight"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert to_megatron(copy, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "gate_proj.weight" in said and "gate_projection" in said and "renamed" in said
    assert not (tmp_path / "out").exists()


def test_types_that_would_be_mixed_are_refused(sources, tmp_path, capsys):
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(sources / "qwen3-untied", tmp_path / "copy"))
    tensors = models.tensors(copy)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert to_megatron(copy, tmp_path / "out", "--tp", 2) == 2
    assert name in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [copy], "nothing half written is left"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tp", 3], "--tp: expected a divisor of num_attention_heads, 4, got 3"),
        (["--tp", 4], "--tp: expected a divisor of num_key_value_heads, 2, got 4"),
        (["--pp", 3], "--pp: expected a divisor of num_hidden_layers, 2, got 3"),
        (["--tp", 0], "--tp: expected a divisor"),
    ],
)
def test_layouts_that_do_not_divide_are_refused(sources, tmp_path, capsys, words, said):
    assert to_megatron(sources / "qwen3-untied", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err


def test_paths_that_are_not_as_they_should_be(sources, checkpoint, tmp_path, capsys):
    assert to_megatron(sources / "qwen3-untied", sources) == 2
    assert "DST: expected a path that does not exist yet" in capsys.readouterr().err
    assert to_megatron(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "SRC: expected a Hugging Face directory" in capsys.readouterr().err
    assert to_hf(sources / "qwen3-untied", tmp_path / "out", "--unverified", "--config", sources / "qwen3-untied") == 2
    assert "megatron.core.dist_checkpointing" in capsys.readouterr().err
    assert convert("--from", "hf", "--to", "hf", sources, tmp_path / "out") == 2
    assert "--to: expected another format" in capsys.readouterr().err
    assert read_config(checkpoint / "hf").tie_word_embeddings is False
