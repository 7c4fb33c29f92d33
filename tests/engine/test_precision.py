"""Policies of 16 bits with float32 main weights, and states that wait in the host's memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from dataclasses import replace

import tiny

from aapa import SFT
from aapa.batch import Sequence
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.offload import Offload
from aapa.engine.policy.optimizer import MAIN, AdamSettings
from aapa.engine.policy.settings import TrainSettings
from aapa.packing import pack

BATCHES = pack([Sequence(s.prompt, s.response, "expert") for s in tiny.rollouts()], 50, SFT())
SETTINGS = AdamSettings(weight_decay=0.1)


def policy(parallel, dtype=torch.bfloat16, **settings) -> MegatronPolicy:
    made = MegatronPolicy(tiny.config(), parallel, dtype, TrainSettings(**settings))
    # The same numbers in both types: those that bfloat16 can hold.
    made.load_weights({n: t.bfloat16().float() for n, t in tiny.hf_model(dtype=torch.float32).state_dict().items()})
    made.start_stage(SETTINGS)
    return made


def train(made: MegatronPolicy, steps: int, rate: float = 1e-4) -> list[float]:
    return [made.train_step(BATCHES, SFT(), rate).sums["loss/sft"] for _ in range(steps)]


@pytest.fixture(params=[False, True], ids=["plain", "distributed"])
def distributed(request) -> bool:
    return request.param


def test_updates_too_small_for_16_bits_are_not_lost(parallel, distributed):
    half, full = policy(parallel, distributed_optimizer=distributed), policy(parallel, torch.float32)
    start = {name: weight.float().clone() for name, weight in half.weights()}
    train(half, 30, 1e-5)
    train(full, 30, 1e-5)
    main = {name: weight.clone() for name, weight in half.moments(MAIN)}
    moved = {name: weight - start[name] for name, weight in full.weights()}
    ours = torch.cat([(main[name] - start[name]).flatten() for name in sorted(main)])
    theirs = torch.cat([moved[name].flatten() for name in sorted(moved)])
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95
    for name, weight in half.weights():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, main[name].bfloat16()), name
    still = [torch.equal(weight.float(), start[name]) for name, weight in half.weights() if weight.dim() == 2]
    assert any(not torch.equal(main[name], start[name]) for name in main)
    # The point of main weights: most of this would round away.
    changed = sum(int((w.float() != start[n]).sum()) for n, w in half.weights()) / sum(
        w.numel() for w in start.values()
    )
    assert changed < 0.5 and not all(still)


def test_gradients_of_a_16_bit_policy_are_summed_in_float32(parallel):
    made = policy(parallel)
    assert {parameter.main_grad.dtype for parameter in made.model.parameters()} == {torch.float32}
    exact = policy(parallel, torch.float32)
    for one in (made, exact):
        one.gradients(BATCHES, SFT())
    for ours, theirs in zip(made.model.parameters(), exact.model.parameters(), strict=True):
        assert (ours.main_grad - theirs.main_grad).norm() < 0.1 * theirs.main_grad.norm()


def test_a_16_bit_policy_goes_on_bit_identically(parallel, distributed, tmp_path):
    whole = policy(parallel, distributed_optimizer=distributed)
    train(whole, 3)
    whole.save(tmp_path, optimizer=True)
    losses = train(whole, 3)
    again = policy(parallel, distributed_optimizer=distributed)
    again.load(tmp_path)
    again.start_stage(SETTINGS)
    again.load_optimizer(tmp_path)
    again.optimizer.set_steps(3)
    assert train(again, 3) == losses
    final = dict(whole.moments(MAIN))
    assert all(torch.equal(tensor, final[name]) for name, tensor in again.moments(MAIN))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_wait_elsewhere_change_nothing(parallel, dtype, distributed):
    away = replace(parallel, offload=True)
    here, there = (policy(p, dtype, distributed_optimizer=distributed) for p in (parallel, away))
    assert held(here) > 0 and held(there) == 0
    for _ in range(3):
        (a,), (b,) = train(here, 1), train(there, 1)
        assert a == b
        assert held(there) > 0
        there.rest()
        assert held(there) == 0
    for name in here.optimizer.names:
        ours, theirs = dict(there.moments(name)), dict(here.moments(name))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    there.rest()
    assert held(there) == 0


def held(made: MegatronPolicy) -> int:
    """Bytes of moments, main weights and gradients."""
    grads = [parameter.main_grad for parameter in made.model.parameters()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in (*made.optimizer.tensors(), *grads)}
    return sum(storage.nbytes() for storage in storages.values())


def test_a_trunk_that_waits_elsewhere_gives_the_same_states(parallel):
    state = tiny.hf_model(dtype=torch.float32).state_dict()
    here, there = (
        FrozenModel(tiny.config(), state, p, torch.float32, 30) for p in (parallel, replace(parallel, offload=True))
    )
    size = sum(p.untyped_storage().nbytes() for p in here.model.parameters())
    assert size > 0 and sum(p.untyped_storage().nbytes() for p in there.model.parameters()) == 0
    prompts, responses, cuts = [[5, 6], [7]], [[11, 12, 13], [8, 9]], [torch.tensor([0, 1, 3]), torch.tensor([0, 2])]
    for _ in range(2):
        want, got = (model.sentence_states(prompts, responses, cuts) for model in (here, there))
        assert torch.equal(got, want)
        assert torch.equal(there.logprobs(BATCHES[:1])[0], here.logprobs(BATCHES[:1])[0])
        assert sum(p.untyped_storage().nbytes() for p in there.model.parameters()) == 0


def test_a_trunk_of_16_bits_is_another_trunk(parallel):
    state = tiny.hf_model(dtype=torch.float32).state_dict()
    hashes = {FrozenModel(tiny.config(), state, parallel, d, 30).hash for d in (torch.float32, torch.bfloat16)}
    assert len(hashes) == 2


def test_views_of_what_was_away_are_valid_again():
    whole = torch.arange(12.0)
    view = whole.view(3, 4)[1]
    offload = Offload(lambda: [whole, view])
    offload.out()
    offload.out()
    assert whole.untyped_storage().nbytes() == 0
    offload.back()
    offload.back()
    assert torch.equal(whole, torch.arange(12.0)) and torch.equal(view, torch.arange(4.0, 8.0))
