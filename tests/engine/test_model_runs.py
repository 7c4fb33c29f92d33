"""Whole runs from a user's Llama directory, and models by their name on the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import models
from hub_server import Hub
from runs import DATA

HERE = Path(__file__).parent
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """bfloat16 in shards, with scaled rotary embeddings, padding rows in the embedding, and no padding token."""
    from aapa.engine.tasks import load_task

    directory = tmp_path_factory.mktemp("llama") / "model"
    words = load_task("mini-if", DATA["options"]).tokenizer()
    hf = models.config(
        "llama",
        vocab_size=len(words) + 5,
        max_position_embeddings=256,
        rope_parameters=models.LLAMA3,
        eos_token_id=words.eos_token_id,
        pad_token_id=None,
        initializer_range=0.05,
    )
    models.model(hf, torch.bfloat16).save_pretrained(directory, max_shard_size="30KB")
    words.pad_token = None
    words.chat_template = TEMPLATE
    words.save_pretrained(directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 3], "temperature": 0.6}\n')
    (directory / "LICENSE").write_text("As you like.\n")
    models.change_config(directory, my_own_key={"kept": True}, transformers_version="4.44.0")
    return directory


RECIPE = """\
name = "given"
[model]
source = "{source}"
[data.options]
train_size = 40
dev_size = 16
test_size = 16
held_out_size = 8
corpus_size = 8
[rollout]
max_new_tokens = 8
[evaluation]
prompts = 4
final_prompts = 4
[[stages]]
name = "sft"
steps = 2
prompts_per_step = 4
learning_rate = {rate}
objective = {{ kind = "sft" }}
[[stages]]
name = "rl"
steps = 2
prompts_per_step = 2
learning_rate = {rate}
rewards = [{{ function = "aapa.engine.tasks.mini_if.rewards:true_reward" }}]
objective = {{ kind = "grpo", group_size = 2, beta = 0.1 }}
"""


def program(folder: Path, *words: object, launcher: tuple[str, ...] = (), **environment: str):
    """The worker without network in a subprocess; the last of its attempts to connect."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    inherited = {key: value for key, value in os.environ.items() if key not in names}
    command = [sys.executable, "-W", "ignore", *launcher, *map(str, words)]
    own = {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache"), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400, env=inherited | own)


def train(folder: Path, source: object, rate: str):
    (folder / "r.toml").write_text(RECIPE.format(source=source, rate=rate))
    words = ("train", "r.toml", "--output", folder / "run")
    return program(folder, HERE / "offline_worker.py", folder / "attempts", *words)


def test_a_run_from_a_llama_directory_without_a_network(llama, tmp_path):
    """SFT, then GRPO against a KL reference; what is written is the user's model, with other weights."""
    done = train(tmp_path, llama, "1e-2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    final, stage = tmp_path / "run" / "final", tmp_path / "run" / "stages" / "rl"
    for directory in (final, stage, tmp_path / "run" / "stages" / "sft"):
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
            assert (directory / name).read_bytes() == (llama / name).read_bytes(), (directory, name)
        assert AutoTokenizer.from_pretrained(directory).chat_template == TEMPLATE
    before = json.loads((llama / "config.json").read_text())
    assert json.loads((final / "config.json").read_text()) == before
    assert json.loads((stage / "config.json").read_text()) == before | {"dtype": "float32"}
    exact, kept, given = (models.tensors(directory) for directory in (stage, final, llama))
    assert kept.keys() == given.keys() == exact.keys()
    for name, tensor in kept.items():
        assert tensor.dtype == given[name].dtype == torch.bfloat16 and exact[name].dtype == torch.float32
        assert torch.equal(tensor, exact[name].bfloat16())
        assert not torch.equal(tensor, given[name]), name
    AutoModelForCausalLM.from_pretrained(final)


def test_a_run_that_moves_nothing_gives_the_same_bytes(llama, tmp_path):
    done = train(tmp_path, llama, "1e-30")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    kept, given = models.tensors(tmp_path / "run" / "final"), models.tensors(llama)
    assert all(torch.equal(kept[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in given.items())
    assert (tmp_path / "run" / "final" / "config.json").read_bytes() == (llama / "config.json").read_bytes()


def test_a_name_on_the_hub_without_a_network(tmp_path):
    done = train(tmp_path, "someone/some-model", "1e-2")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "attempts").exists(), "the test of runs without a network must be able to fail"
    assert "model.source: expected a directory or a model of the hub, got 'someone/some-model'" in done.stderr
    assert "pass the path of a directory that holds the model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.multiprocess
def test_one_rank_fetches_a_model_of_the_hub(llama, tmp_path):
    """Over HTTP from a server that speaks the hub's protocol: by one rank, only what is needed, once."""
    (llama / "pytorch_model.bin").write_bytes(b"never fetched")
    (llama / "modeling_own.py").write_text("raise SystemExit\n")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    with Hub("someone/some-model", llama) as hub:
        for _ in range(2):
            words = (HERE / "hub_worker.py", "someone/some-model", tmp_path / "out")
            done = program(tmp_path, *words, launcher=launcher, HF_ENDPOINT=hub.address)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        fetched = hub.fetched()
        words = (HERE / "hub_worker.py", "someone/other-model", tmp_path / "out")
        missing = program(tmp_path, *words, launcher=launcher, HF_ENDPOINT=hub.address)
    for file in ("pytorch_model.bin", "modeling_own.py"):
        (llama / file).unlink()
    wanted = {file.name for file in llama.iterdir()}
    assert sorted(fetched) == sorted(wanted)
    places = {(tmp_path / f"out.{rank}").read_text() for rank in range(2)}
    assert len(places) == 1
    assert {file.name for file in Path(places.pop()).iterdir()} == wanted
    assert missing.returncode != 0
    assert missing.stderr.count("UserError: model.source: expected a directory or a model of the hub, got") >= 2
