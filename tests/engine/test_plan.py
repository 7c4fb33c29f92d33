"""A plan's arithmetic against independent counts, and what `aapa plan` says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig, Qwen3Config

sys.path.insert(0, str(Path(__file__).parent))

import models

from aapa.engine.cli import main
from aapa.engine.errors import UserError
from aapa.engine.plan.calibration import calibrated
from aapa.engine.plan.gpus import GPUS, gpu
from aapa.engine.plan.layout import Layout
from aapa.engine.plan.memory import activation_bytes, cache_bytes, in_flight, layer_bytes
from aapa.engine.plan.model import parameters
from aapa.engine.plan.published import PUBLISHED
from aapa.engine.plan.search import KEYS, overrides
from aapa.engine.plan.timing import Assumptions
from aapa.engine.plan.work import work_of
from aapa.engine.recipe import load_recipe
from aapa.engine.rollout import chosen_engine


def plan(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["plan", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Parameters, and those that are no embedding, of the model cards, in billions.
CARDS = {
    "Qwen/Qwen3-0.6B": (0.6, 0.44),
    "Qwen/Qwen3-1.7B": (1.7, 1.4),
    "Qwen/Qwen3-4B": (4.0, 3.6),
    "Qwen/Qwen3-8B": (8.2, 6.95),
    "Qwen/Qwen3-14B": (14.8, 13.2),
    "Qwen/Qwen3-32B": (32.8, 31.2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_parameters_of_their_model_cards(name):
    hf = Qwen3Config(**PUBLISHED[name])
    whole, rest = CARDS[name]
    embeddings = hf.vocab_size * hf.hidden_size * (1 if hf.tie_word_embeddings else 2)
    assert round(parameters(hf) / 1e9, 1) == whole
    assert (parameters(hf) - embeddings) / 1e9 == pytest.approx(rest, abs=0.05)


def kept(layers: int, family: str, recompute: str, parallel) -> tuple[int, PretrainedConfig]:
    """Bytes that autograd keeps for the backward pass of 64 tokens, every storage once, without parameters."""
    from aapa.engine.policy.attention import PackedSeq
    from aapa.engine.policy.megatron import MegatronPolicy
    from aapa.engine.policy.settings import TrainSettings

    hf = models.config(family, num_hidden_layers=layers, hidden_size=64, intermediate_size=112)
    settings = TrainSettings(recompute=recompute)
    policy = MegatronPolicy(hf, parallel, torch.float32, settings)
    policy.ddp[0].train()
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    alive = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    length, count = 16, 4
    bounds = torch.arange(0, length * count + 1, length, dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.model(
            torch.zeros(1, length * count, dtype=torch.long),
            torch.arange(length).repeat(count)[None],
            None,
            packed_seq_params=PackedSeq(bounds, length, None),
        )
    return sum(size for size, _ in alive.values()), hf


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_activations_of_a_layer_are_what_autograd_keeps(parallel, family):
    two, _ = kept(2, family, "none", parallel)
    three, hf = kept(3, family, "none", parallel)
    assert layer_bytes(hf, Layout(), 64, 4, fused=False) == three - two


def test_under_full_recomputation_a_layer_keeps_its_input(parallel):
    two, _ = kept(2, "qwen3", "full", parallel)
    three, hf = kept(3, "qwen3", "full", parallel)
    row = 4 * 64 * hf.hidden_size
    assert three - two == row
    planned = [
        activation_bytes(models.config("qwen3", num_hidden_layers=layers), Layout(recompute="full"), 0, 64, 1, 4)
        for layers in (2, 3)
    ]
    assert planned[1] - planned[0] == 4 * 64 * 32


def test_tensor_parallelism_divides_what_it_splits():
    hf = Qwen3Config(**PUBLISHED["Qwen/Qwen3-14B"])
    one, two = (layer_bytes(hf, Layout(tensor=t), 4096, 2) for t in (1, 2))
    whole = layer_bytes(hf, Layout(tensor=2, sequence=True), 4096, 2)
    angles = 4096 * 2 * 4 * hf.head_dim
    across = 4096 * (2 * 4 * hf.hidden_size + 4 * 2)
    assert two == pytest.approx((one - across - angles) / 2 + across + angles)
    assert whole == pytest.approx((one - angles) / 2 + angles), "(4): everything but the rotary angles"


def one_forward_one_backward(stages: int, stage: int, micro_batches: int) -> int:
    """Most micro-batches between their forward and backward pass, in the schedule played out."""
    warm = min(stages - 1 - stage, micro_batches)
    alive = most = warm
    for _ in range(micro_batches - warm):
        alive += 1
        most = max(most, alive)
        alive -= 1
    return max(most, warm)


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 16])
def test_micro_batches_in_flight(stages, micro_batches):
    for stage in range(stages):
        want = one_forward_one_backward(stages, stage, micro_batches)
        assert in_flight(Layout(pipeline=stages), stage, micro_batches) == want


def test_interleaving_holds_what_korthikanti_et_al_say():
    """L (1 + (p - 1) / (p v)) layers on the first stage, section 4.2.3."""
    layers, p, v = 64, 4, 2
    chunks = in_flight(Layout(pipeline=p, virtual=v), 0, 1000)
    assert chunks * layers / (p * v) == pytest.approx(layers * (1 + (p - 1) / (p * v)))


def test_cache_is_that_of_transformers():
    hf = models.config("qwen3")
    model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32)
    cache = DynamicCache(config=hf)
    with torch.no_grad():
        model(torch.zeros(3, 10, dtype=torch.long), past_key_values=cache)
    real = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(hf, hf.num_hidden_layers, 1, 3, 10, 4) == real


def test_layers_of_interleaved_stages_cover_the_model_once():
    layout = Layout(pipeline=2, virtual=3)
    assert layout.layers(0, 12) == [[0, 1], [4, 5], [8, 9]]
    assert layout.layers(1, 12) == [[2, 3], [6, 7], [10, 11]]


@pytest.mark.parametrize("gpus", [8, 16])
@pytest.mark.parametrize("name", ["h100-80gb", "h200"])
@pytest.mark.parametrize("size", ["14b", "32b"])
def test_large_recipes_have_layouts_that_fit(capsys, size, name, gpus):
    words = [f"qwen3-{size}-a-grpo", "--gpu", name, "--gpus", str(gpus)]
    if (size, name, gpus) == ("32b", "h100-80gb", 8) and "offload" not in KEYS:
        # 18 bytes a parameter beside the trunk's: 640 GB do not hold them.
        assert main(["plan", *words]) == 2
        assert re.search(r"got [\d.]+ GB too much .*\n.*\n.*what would fit: .*--gpus 16", capsys.readouterr().err)
        return
    found = plan(capsys, *words)
    best = found["layouts"][0]
    assert best["peak_bytes"] <= GPUS[name].memory and best["fits"]
    assert best["layout"]["tensor"] * best["layout"]["pipeline"] * best["layout"]["data"] == gpus


def test_a_plan_names_the_peak_and_every_rank(capsys):
    found = plan(capsys, "qwen3-4b-a-grpo", "--gpu", "h100", "--gpus", 8, "--best", 2)
    assert found["model"] == "Qwen/Qwen3-4B" and found["parameters"] == 4022468096 and len(found["layouts"]) == 2
    steps = [
        choice["stages"]["rl"]["step_seconds"] + choice["stages"]["sft"]["step_seconds"] for choice in found["layouts"]
    ]
    assert steps == sorted(steps)
    for choice in found["layouts"]:
        phases = choice["phase_bytes"]
        assert choice["peak"]["phase"] == max(phases, key=phases.get)
        assert choice["peak_bytes"] == max(phases.values()) <= found["gpu"]["memory"]
        assert choice["peak_bytes"] == pytest.approx(sum(choice["breakdown_bytes"][choice["peak"]["phase"]].values()))
        layout = Layout(**choice["layout"])
        assert layout.gpus == 8
        assert len(choice["exact_bytes"]) == layout.pipeline * (layout.data if layout.distributed_optimizer else 1)
        assert all(0 < stage["mfu"] < 1 for stage in choice["stages"].values())


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2), Layout(tensor=2), Layout(pipeline=2), Layout(context=2)])
def test_rollouts_are_planned_with_the_engine_that_a_run_takes(layout):
    recipe = load_recipe("smoke")
    work = work_of(recipe, models.config("qwen3"), 16)
    assert work.samples_with(layout) == chosen_engine("auto", layout)


def test_the_layout_that_is_printed_can_be_given(capsys):
    layout = Layout(tensor=2, pipeline=2, virtual=2, sequence=True, recompute="full", distributed_optimizer=True)
    words = overrides(layout).split()
    assert set(words[::2]) <= {f"--parallel.{name}" for name in KEYS}
    words += ["--model.dtype", "float32", "--gpu", "b200", "--gpus", "8"]
    found = plan(capsys, "qwen3-0.6b-a-grpo", *words, "--as-given")
    given = found["layouts"][0]["layout"]
    assert (given["tensor"], given["pipeline"], given["virtual"], given["data"]) == (2, 2, 2, 2)
    assert given["sequence"] and given["recompute"] == "full" and given["distributed_optimizer"]


def test_what_cannot_fit_says_by_how_much_and_what_would(capsys):
    words = ["qwen3-0.6b-a-grpo", "--gpu", "h100", "--gpus", "1", "--parallel.micro_batch_tokens", "131072"]
    assert main(["plan", *words, "--as-given"]) == 2
    said = capsys.readouterr().err
    assert "plan: expected the recipe's layout that fits 1 x H100-80GB of 80 GB, got" in said and "GB too much" in said
    assert "update phase of stage" in said and "activations" in said
    (line,) = [line for line in said.splitlines() if "what would fit" in line]
    change = next(part for part in line.split(": ", 2)[2].split("; ") if "micro_batch_tokens" in part)
    flag, value, *_ = change.split()
    assert main(["plan", *words, flag, value]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["qwen3-0.6b-a-grpo", "--gpu", "h300", "--gpus", "8"], "--gpu: expected one of a100-80gb, h100-80gb"),
        (["qwen3-0.6b-a-grpo", "--gpu", "h200", "--gpus", "0"], "--gpus: expected at least 1, got 0"),
        (["qwen3-4b-a-grpo", "--gpu", "h200", "--gpus", "7"], "prompts_per_step: expected a multiple of 7"),
        (["nothing", "--gpu", "h200", "--gpus", "8"], "recipe: expected a TOML file or one of"),
        (["qwen3-14b-a-grpo", "--gpu", "h200", "--gpus", "6", "--as-given"], "--gpus: expected a multiple of"),
    ],
)
def test_bad_words_are_refused(capsys, words, said):
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_table_for_people(capsys):
    assert main(["plan", "smoke", "--gpu", "a100", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "TP1 PP1 DP2" in said and "estimates" in said and "exact" in said and "Assumed: prompts of" in said


def test_a_model_directory_gives_its_shape(capsys, tmp_path):
    source = models.save(tmp_path / "model", models.config("llama"))
    found = plan(
        capsys,
        "qwen3-0.6b-a-grpo",
        "--model.source",
        source,
        "--rollout.max_new_tokens",
        64,
        "--gpu",
        "h200",
        "--gpus",
        1,
    )
    expected = sum(tensor.numel() for tensor in models.tensors(source).values())
    assert found["parameters"] == expected


def test_measurements_replace_assumptions(tmp_path):
    def row(op: str, device: str, speed: float | None, ratio: float | None = None) -> str:
        figures = {"op": op, "device": device, "dtype": "bfloat16", "tflop_s": speed, "limit_ratio": ratio}
        return json.dumps(figures) + "\n"

    h100 = "NVIDIA H100 80GB HBM3"
    rows = [
        row("linear_policy_loss", h100, 500.0, 0.8),
        row("linear_policy_loss", "NVIDIA H200", 100.0, 0.9),
        row("policy_loss", h100, None, 0.9),
    ]
    file = tmp_path / "a" / "head.jsonl"
    file.parent.mkdir()
    file.write_text("".join(rows))
    found = calibrated(gpu("h100"), tmp_path)
    assert found.matmul == pytest.approx(500 / 0.8 / 989) and found.update is None and len(found.measured) == 1
    assert calibrated(gpu("b200"), tmp_path) == Assumptions()
    with file.open("a") as more:
        more.write(
            json.dumps({"op": "policy_update", "device": "NVIDIA H100", "dtype": "bfloat16", "tflop_s": 420.0}) + "\n"
        )
    assert calibrated(gpu("h100"), tmp_path).update == pytest.approx(420 / 989)
    file.write_text("no JSON\n")
    with pytest.raises(UserError, match=r"--results: expected JSON lines, got .*head.jsonl:1"):
        calibrated(gpu("h100"), tmp_path)
