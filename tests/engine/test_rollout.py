"""The transformers engine: one response per row, whatever shares its batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from aapa.engine.errors import UserError
from aapa.engine.rollout import build_engine, sample_seed

sys.path.insert(0, str(Path(__file__).parent))
import tiny


def engine(dtype: torch.dtype = torch.float32, max_batch: int = 64, limit: float = 1.0):
    made = build_engine(
        "auto",
        tiny.config(),
        eos=1,
        pad=0,
        dtype=dtype,
        device=torch.device("cpu"),
        max_batch=max_batch,
        memory_limit_gb=limit,
    )
    made.load_weights(tiny.hf_model(dtype=dtype).state_dict().items())
    return made


def prompts(count: int = 40) -> tuple[list[list[int]], list[int]]:
    g = torch.Generator().manual_seed(3)
    made = [torch.randint(2, tiny.VOCABULARY, (1 + i % 9,), generator=g).tolist() for i in range(count)]
    return made, [sample_seed("test", i) for i in range(count)]


def test_responses_do_not_depend_on_batch_size_order_or_company():
    rows, seeds = prompts()
    whole = engine().generate(rows, seeds, max_new_tokens=20, temperature=0.9)
    small = engine(max_batch=7).generate(rows, seeds, max_new_tokens=20, temperature=0.9)
    back = engine().generate(rows[::-1], seeds[::-1], max_new_tokens=20, temperature=0.9)[::-1]
    alone = engine().generate(rows[5:6], seeds[5:6], max_new_tokens=20, temperature=0.9)
    assert [r.response for r in whole] == [r.response for r in small] == [r.response for r in back]
    assert whole[5].response == alone[0].response
    assert [r.prompt for r in whole] == rows


def test_another_seed_gives_another_response():
    rows, seeds = prompts(8)
    first = engine().generate(rows, seeds, max_new_tokens=12, temperature=1.0)
    second = engine().generate(rows, [s + 1 for s in seeds], max_new_tokens=12, temperature=1.0)
    assert sum(a.response != b.response for a, b in zip(first, second, strict=True)) >= 6


def test_a_response_ends_with_its_first_end_of_sequence():
    rows, seeds = prompts()
    rollouts = engine().generate(rows, seeds, max_new_tokens=30, temperature=1.0)
    assert {r.finished for r in rollouts} == {True, False}
    for r in rollouts:
        assert (1 in r.response) == r.finished
        assert 1 not in r.response[:-1]
        assert len(r.response) == len(r.logprob) <= 30
        assert r.finished or len(r.response) == 30


def test_log_probs_are_the_models_at_the_sampling_temperature():
    rows, seeds = prompts(10)
    model = tiny.hf_model(dtype=torch.float32)
    for r in engine().generate(rows, seeds, max_new_tokens=15, temperature=0.7):
        logits = model(torch.tensor([r.prompt + r.response])).logits[0, len(r.prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(r.response)[:, None])[:, 0]
        torch.testing.assert_close(r.logprob, expected.detach(), rtol=1e-4, atol=1e-5)


def test_tokens_are_drawn_with_the_models_probabilities():
    """A chi-square statistic over the first token of 4000 samples of one prompt."""
    count = 4000
    rollouts = engine(max_batch=count).generate(
        [[5, 9, 12]] * count, [sample_seed("chi", i) for i in range(count)], max_new_tokens=1, temperature=1.0
    )
    found = torch.bincount(torch.tensor([r.response[0] for r in rollouts]), minlength=tiny.VOCABULARY).double()
    logits = tiny.hf_model(dtype=torch.float32)(torch.tensor([[5, 9, 12]])).logits[0, -1]
    expected = logits.double().softmax(-1) * count
    likely = expected > 5
    statistic = float(((found - expected) ** 2 / expected)[likely].sum())
    freedom = int(likely.sum()) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_weights_are_replaced_and_missing_ones_named():
    made = engine()
    rows, seeds = prompts(6)
    before = made.generate(rows, seeds, max_new_tokens=12, temperature=1.0)
    made.load_weights(tiny.hf_model(dtype=torch.float32, seed=1).state_dict().items())
    after = made.generate(rows, seeds, max_new_tokens=12, temperature=1.0)
    assert [r.response for r in before] != [r.response for r in after]
    state = tiny.hf_model(dtype=torch.float32).state_dict()
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"expected a tensor 'model.norm.weight'"):
        made.load_weights(state.items())


def test_a_model_above_the_memory_bound_is_refused():
    with pytest.raises(UserError, match=r"rollout\.memory_limit_gb: expected at least"):
        engine(limit=1e-6)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match=r"rollout\.engine: expected"):
        build_engine(
            "sglang",
            tiny.config(),
            eos=1,
            pad=0,
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_batch=1,
            memory_limit_gb=1.0,
        )
