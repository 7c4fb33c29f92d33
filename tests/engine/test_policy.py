"""The Megatron policy against transformers and against itself cut differently."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from aapa import GRPO, SFT
from aapa.batch import BatchCounts, Sequence
from aapa.engine.errors import TrainingFault, UserError
from aapa.engine.policy.attention import PackedSeq
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.model import check_supported
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.stream import stream
from aapa.kernels import policy_loss
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import itertools

import tiny
from own_objective import Reinforce


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture
def policy(parallel, tied) -> MegatronPolicy:
    made = MegatronPolicy(tiny.config(tied), parallel, torch.float64)
    made.load_weights(tiny.hf_model(tied).state_dict())
    return made


def gradients(policy: MegatronPolicy) -> dict[str, torch.Tensor]:
    return {
        name: grad.clone() for name, grad in stream(policy.model, policy.hf, policy.parallel, lambda p: p.main_grad)
    }


def test_the_weight_round_trip_is_bit_identical(policy, tied):
    original = tiny.hf_model(tied).state_dict()
    returned = dict(policy.weights())
    if tied:
        assert "lm_head.weight" not in returned
        original.pop("lm_head.weight")
    assert returned.keys() == original.keys()
    assert all(torch.equal(returned[name], original[name]) for name in original)


def test_logprobs_and_entropy_equal_transformers(policy, tied):
    model = tiny.hf_model(tied)
    sequences = tiny.rollouts()
    for batch, (logprob, entropy) in zip(
        batches := pack(sequences, 30), policy.logprobs(batches, entropy=True), strict=True
    ):
        values = zip(batch.index_N, batch.responses(logprob), batch.responses(entropy), strict=True)
        for index, got, spread in values:
            s = sequences[index]
            logits = model(torch.cat([s.prompt, s.response])[None]).logits[0, len(s.prompt) - 1 : -1]
            logp = (logits / s.temperature).log_softmax(-1)
            torch.testing.assert_close(got, logp.gather(1, s.response[:, None])[:, 0], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(spread, -(logp.exp() * logp).sum(-1), rtol=1e-6, atol=1e-7)


def test_gradients_equal_transformers_autograd(policy, tied):
    """GRPO with KL, anchor, clipping and ratios other than 1, through a model that is not ours."""
    objective, sequences = tiny.objective(), tiny.rollouts()
    model = tiny.hf_model(tied)
    total = 0.0
    for batch in pack(sequences, 10_000, objective):
        parts, bounds = [], batch.cu_seqlens.tolist()
        for a, b in itertools.pairwise(bounds):
            parts.append(model(batch.token_T[None, a:b]).logits[0])
        logits = torch.cat(parts) / batch.temperature_T[:, None]
        logprob = logits.log_softmax(-1).gather(1, batch.target_T[:, None])[:, 0]
        loss, _ = policy_loss(logprob, None, *objective.lower(batch))
        loss.backward()
        total += loss.item()
    sums = policy.gradients(pack(sequences, 25, objective, BatchCounts.of(sequences)), objective)
    assert sum(value for name, value in sums.items() if name.startswith("loss/")) == pytest.approx(total, rel=1e-7)
    expected = {name: p.grad for name, p in model.named_parameters()}
    for name, grad in gradients(policy).items():
        # transformers computes rotary angles in float32
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=2e-6, msg=name)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), budget=st.integers(5, 200))
def test_packing_and_micro_batches_change_nothing(order, budget, parallel):
    """Loss and gradients to 1e-10 in float64 for any order and any memory knob (METHOD 4.1)."""
    policy = MegatronPolicy(tiny.config(), parallel, torch.float64)
    policy.load_weights(tiny.hf_model().state_dict())
    for objective in (tiny.objective(), tiny.objective(aggregation="grpo")):
        sequences = tiny.rollouts()
        counts = BatchCounts.of(sequences)
        want_sums = policy.gradients(pack(sequences, 10_000, objective, counts), objective)
        want = gradients(policy)
        shuffled = [sequences[i] for i in order]
        sums = policy.gradients(pack(shuffled, budget, objective, counts), objective)
        for name in want_sums:
            assert sums[name] == pytest.approx(want_sums[name], rel=1e-10, abs=1e-10), name
        for name, grad in gradients(policy).items():
            torch.testing.assert_close(grad, want[name], rtol=0, atol=1e-10, msg=name)


def test_a_whole_stage_of_sft_lowers_the_loss(parallel):
    policy = MegatronPolicy(tiny.config(), parallel, torch.float32)
    policy.load_weights(tiny.hf_model(dtype=torch.float32).state_dict())
    policy.start_stage(AdamSettings())
    sequences = [Sequence(s.prompt, s.response, "expert") for s in tiny.rollouts()]
    batches = pack(sequences, 50, SFT())
    losses = [policy.train_step(batches, SFT(), 1e-2).sums["loss/sft"] for _ in range(15)]
    assert losses[-1] < 0.3 * losses[0]


def test_an_update_equals_torch_adamw_on_transformers(parallel, tied):
    """Clipping by the global norm, decoupled decay of matrices only."""
    policy = MegatronPolicy(tiny.config(tied), parallel, torch.float32)
    policy.load_weights(tiny.hf_model(tied, torch.float32).state_dict())
    policy.start_stage(AdamSettings(weight_decay=0.1, clip_grad=0.3, beta1=0.8, beta2=0.9))
    model = tiny.hf_model(tied, torch.float32)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.8, 0.9),
    )
    sequences = [Sequence(s.prompt, s.response, "expert") for s in tiny.rollouts()]
    tokens = sum(len(s.response) for s in sequences)
    for _ in range(3):
        norm = policy.train_step(pack(sequences, 50, SFT()), SFT(), 1e-2).grad_norm
        adam.zero_grad()
        for s in sequences:
            logits = model(torch.cat([s.prompt, s.response])[None]).logits[0, len(s.prompt) - 1 : -1]
            (torch.nn.functional.cross_entropy(logits, s.response, reduction="sum") / tokens).backward()
        expected = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3))
        adam.step()
        assert norm == pytest.approx(expected, rel=1e-4)
    after = dict(model.named_parameters())
    for name, weight in policy.weights():
        torch.testing.assert_close(weight, after[name].detach(), rtol=0, atol=5e-4, msg=name)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(parallel):
    policy = MegatronPolicy(tiny.config(), parallel, torch.float32)
    policy.load_weights(tiny.hf_model(dtype=torch.float32).state_dict())
    policy.start_stage(AdamSettings())
    sequences = tiny.rollouts()
    sequences[0].advantage[0] = float("nan")
    before = {name: weight.clone() for name, weight in policy.weights()}
    with pytest.raises(TrainingFault, match="gradient norm: expected a finite number"):
        policy.train_step(pack(sequences, 50, GRPO()), GRPO(), 1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.weights())


@pytest.mark.parametrize("layer", [-1, 1, 2])
def test_a_trunk_gives_the_mean_of_transformers_hidden_states(parallel, layer):
    model = tiny.hf_model()
    trunk = FrozenModel(tiny.config(), model.state_dict(), parallel, torch.float64, 30, layer)
    prompts, responses = [[5, 6], [7], [8, 9, 10]], [[11, 12, 13, 14, 1], [], [15, 1]]
    cu_sents = [torch.tensor([0, 2, 5]), torch.tensor([0]), torch.tensor([0, 2])]
    got = trunk.sentence_states(prompts, responses, cu_sents)
    expected = []
    captured: list[torch.Tensor] = []
    model.model.layers[max(layer, 1) - 1].register_forward_hook(lambda m, i, out: captured.append(out))
    for prompt, response, cu in zip(prompts, responses, cu_sents, strict=True):
        out = model(torch.tensor([prompt + response]), output_hidden_states=True)
        states = out.hidden_states[-1] if layer == -1 else captured[-1]
        for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
            expected.append(states[0, len(prompt) + a : len(prompt) + b].mean(0))
    torch.testing.assert_close(got, torch.stack(expected).double().detach(), rtol=1e-6, atol=1e-6)


def test_equal_trunks_have_equal_hashes_and_others_do_not(parallel):
    def trunk(seed: int, layer: int) -> str:
        state = tiny.hf_model(seed=seed).state_dict()
        return FrozenModel(tiny.config(), state, parallel, torch.float64, 30, layer).hash

    assert trunk(0, -1) == trunk(0, -1)
    assert len({trunk(0, -1), trunk(0, 1), trunk(1, -1)}) == 3


def test_missing_and_misshapen_weights_are_named(parallel):
    policy = MegatronPolicy(tiny.config(), parallel, torch.float64)
    state = dict(tiny.hf_model().state_dict())
    short = state | {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1]}
    wanted = r"expected 'model.embed_tokens.weight' to have shape \(67, 32\), got \(66, 32\)"
    with pytest.raises(ValueError, match=wanted):
        policy.load_weights(short)
    del state["model.layers.1.mlp.up_proj.weight"]
    wanted = r"expected a tensor 'model.layers.1.mlp.up_proj.weight' of shape \(48, 32\), got none"
    with pytest.raises(ValueError, match=wanted):
        policy.load_weights(state)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "gpt2"), ("use_sliding_window", True), ("hidden_act", "gelu")],
)
def test_models_that_would_compute_something_else_are_refused(field, value):
    hf = GPT2Config() if field == "model_type" else tiny.config()
    if field != "model_type":
        setattr(hf, field, value)
    with pytest.raises(UserError, match=r"model\.source: expected"):
        check_supported(hf)


def test_an_objective_of_ones_own_has_the_gradient_of_its_formula(parallel):
    """In float64, against autograd through the same layers and a dense log-softmax."""
    objective, sequences = Reinforce(group_size=4, bonus=0.3), tiny.rollouts()
    policy = MegatronPolicy(tiny.config(), parallel, torch.float64)
    policy.load_weights(tiny.hf_model().state_dict())
    sums = policy.gradients(pack(sequences, 40, objective), objective)
    tokens = BatchCounts.of(sequences).rollout_tokens
    loss = torch.zeros((), dtype=torch.float64)
    for sequence in sequences:
        (batch,) = pack([sequence], 1000)
        packed = PackedSeq(batch.cu_seqlens, batch.max_seqlen)
        hidden = policy.model(batch.token_T[None], batch.position_T[None], None, packed_seq_params=packed)
        # Temperatures and weights are float32 by design, the rest of the way is float64.
        logits = hidden[len(sequence.prompt) - 1 : -1, 0] @ policy.model.head_weight().t()
        table = (logits / float(torch.tensor(sequence.temperature))).log_softmax(-1)
        logprob, entropy = table.gather(1, sequence.response[:, None])[:, 0], -(table.exp() * table).sum(-1)
        if sequence.mask is None:
            value = -sequence.advantage * logprob - objective.bonus * entropy
            loss = loss + (value * float(torch.tensor(1.0 / tokens))).sum()
    assert sums["loss/custom"] == pytest.approx(float(loss.detach()), abs=1e-10)
    parameters = dict(policy.model.named_parameters())
    for (name, parameter), grad in zip(
        parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(parameter.main_grad, grad, rtol=0, atol=1e-10, msg=name)
