"""The policy decodes itself: the samples of transformers at every layout, and no memory beside the cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

sys.path.insert(0, str(Path(__file__).parent))
import rollout_case
import tiny

# processes, tensor, pipeline, further keys
LAYOUTS = {"pipeline": (2, 1, 2)}
MORE = {
    "tensor": (2, 2, 1),
    "tensor and sequence, pipeline": (4, 2, 2, "sequence=true"),
    "interleaved": (2, 1, 2, "virtual=2"),
    "context": (2, 1, 1, "context=2"),
    "four stages": (4, 1, 4),
}


@pytest.fixture(scope="module")
def expected() -> list:
    torch.set_num_threads(1)
    return rollout_case.decoded(None)


def compare(got: list, expected: list) -> None:
    lengths = {len(row[0]) for case in expected for row in case}
    assert len(lengths) > 10 and {row[1] for case in expected for row in case} == {True, False}
    for case, (rows, wanted) in enumerate(zip(got, expected, strict=True)):
        for row, (found, want) in enumerate(zip(rows, wanted, strict=True)):
            assert found[:2] == want[:2], (rollout_case.CASES[case], row)
            # At a temperature near 0 log-probs are rounding errors times its inverse.
            assert found[2] == pytest.approx(want[2], abs=1e-5 / rollout_case.CASES[case][0]), (case, row)


def test_one_process_draws_the_samples_of_transformers(parallel, expected):
    compare(rollout_case.decoded(rollout_case.policy(parallel)), expected)


def test_greedy_decoding_takes_the_likeliest_token(parallel):
    engine = rollout_case.engine("megatron", 1, 64, rollout_case.policy(parallel))
    rows, seeds = rollout_case.prompts(5)
    model = tiny.hf_model(True, torch.float32, layers=rollout_case.LAYERS)
    for rollout in engine.generate(rows, seeds, max_new_tokens=12, temperature=1e-6):
        tokens = torch.tensor([rollout.prompt + rollout.response])
        likeliest = model(tokens).logits[0, len(rollout.prompt) - 1 : -1].argmax(-1)
        assert likeliest.tolist() == rollout.response


def test_weights_that_change_are_decoded_with_at_once(parallel):
    policy = rollout_case.policy(parallel)
    engine = rollout_case.engine("megatron", 1, 64, policy)
    rows, seeds = rollout_case.prompts(6)
    before = engine.generate(rows, seeds, max_new_tokens=12, temperature=1.0)
    policy.load_weights(tiny.hf_model(True, torch.float32, seed=1, layers=rollout_case.LAYERS).state_dict())
    after = engine.generate(rows, seeds, max_new_tokens=12, temperature=1.0)
    assert [r.response for r in before] != [r.response for r in after]


def test_a_rollout_needs_the_cache_and_little_else(parallel):
    check_rollout_bytes(rollout_case.rollout_bytes(parallel))


def check_rollout_bytes(found: dict[str, list[int]]) -> None:
    (few, few_cache), (many, many_cache) = found["4"], found["8"]
    assert few >= few_cache, "the measurement must see the cache"
    # Beside the cache there is one layer's work at a time: twice the layers take twice the cache, and no more than some
    # kilobytes of hidden states (a stage of one layer holds fewer at a time than one of two).
    assert many - few <= 1.03 * (many_cache - few_cache)
    assert many - many_cache <= 0.6 * many_cache


@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_draws_the_samples_of_transformers(layout, expected, launch, tmp_path):
    check(LAYOUTS[layout], expected, launch, tmp_path)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", MORE)
def test_a_further_layout_draws_the_samples_of_transformers(layout, expected, launch, tmp_path):
    check(MORE[layout], expected, launch, tmp_path)


def check(sizes, expected, launch, tmp_path) -> None:
    processes, tensor, pipeline, *keys = sizes
    launch("rollout_worker.py", processes, tensor, pipeline, tmp_path, *keys)
    files = sorted(tmp_path.glob("rank-*.json"))
    assert len(files) == processes
    state = tiny.hf_model(True, torch.float32, layers=rollout_case.LAYERS).state_dict()
    state.pop("lm_head.weight")
    for file in files:
        found = json.loads(file.read_text())
        compare(found["rollouts"], expected)
        check_rollout_bytes(found["rollout_bytes"])
        weights = load(bytes.fromhex(found["weights"]))
        assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
        if tensor * pipeline > 1:
            whole = sum(tensor.numel() * 4 for tensor in state.values())
            assert 0 < found["stream_bytes"] <= rollout_case.BUCKET < whole / 2
