"""Hugging Face models in and out of the policy: the same numbers as transformers, and the same bytes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aapa import SFT
from aapa.batch import Sequence
from aapa.engine.hf_directory import Origin, SafetensorsWeights, read_config, read_tokenizer, write_directory
from aapa.engine.policy.attention import PackedSeq
from aapa.engine.policy.frozen import FrozenModel, model_hash
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.names import expected_shapes
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.stream import stream
from aapa.engine.rollout import build_engine
from aapa.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import models

EVERY = [(family, name) for family in models.FAMILIES for name in models.VARIANTS]


@pytest.fixture(params=EVERY, ids=lambda pair: "-".join(pair))
def hf(request):
    family, name = request.param
    return models.config(family, **models.VARIANTS[name])


def policy_of(directory: Path, parallel, dtype=torch.float32) -> MegatronPolicy:
    config = read_config(directory)
    made = MegatronPolicy(config, parallel, dtype)
    made.load_weights(SafetensorsWeights(directory, config=config))
    return made


def log_probs(model, sequence: Sequence) -> torch.Tensor:
    """[R, V] table of transformers' log-probs."""
    tokens = torch.cat([sequence.prompt, sequence.response])[None]
    return model(tokens).logits[0, len(sequence.prompt) - 1 : -1].float().log_softmax(-1)


def assert_like_transformers(policy: MegatronPolicy, model, tolerance: float = 1e-5) -> None:
    rows = models.sequences()
    batches = pack(rows, 200)
    with torch.no_grad():
        for batch, (logprob, entropy) in zip(batches, policy.logprobs(batches, entropy=True), strict=True):
            values = zip(batch.index_N, batch.responses(logprob), batch.responses(entropy), strict=True)
            for index, got, spread in values:
                table = log_probs(model, rows[index])
                want = table.gather(1, rows[index].response[:, None])[:, 0]
                torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(spread, -(table.exp() * table).sum(-1), rtol=tolerance, atol=tolerance)


def test_logits_equal_transformers(hf, parallel, tmp_path):
    """Full logits in float32: hidden states times the head, against transformers' own."""
    directory = models.save(tmp_path / "model", hf)
    policy = policy_of(directory, parallel)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert_like_transformers(policy, reference)
    for sequence in models.sequences():
        (batch,) = pack([sequence], 1000)
        packed = PackedSeq(batch.cu_seqlens, batch.max_seqlen)
        with torch.no_grad():
            hidden = policy.model(batch.token_T[None], batch.position_T[None], None, packed_seq_params=packed)
            logits = hidden[:, 0] @ policy.model.head_weight().t()
            torch.testing.assert_close(logits, reference(batch.token_T[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_variants_matter(parallel):
    """Each variant's logits differ from the plain model's, else the test above could not fail."""
    tokens = models.sequences()[3].response[None]
    for family in models.FAMILIES:
        plain = models.model(models.config(family))
        for name in ("theta", "linear", "llama3", "yarn", "yarn-attention", "yarn-mscale", "biases"):
            other = models.model(models.config(family, **models.VARIANTS[name]))
            other.load_state_dict(plain.state_dict(), strict=False)
            with torch.no_grad():
                difference = (other(tokens).logits - plain(tokens).logits).abs().max()
            assert difference > 1e-3, (family, name)


def test_names_and_shapes_are_those_of_transformers(hf):
    state = models.model(hf).state_dict()
    want = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if hf.tie_word_embeddings:
        del want["lm_head.weight"]
    assert expected_shapes(hf) == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shard", ["5GB", "9KB"])
@pytest.mark.parametrize("variant", ["tied", "untied", "biases", "llama3"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_round_trip_is_bit_identical(family, variant, shard, dtype, parallel, tmp_path):
    """Directory → Megatron → directory: bytes of every tensor, config.json, tokenizer, generation settings."""
    source = models.save(tmp_path / "source", models.config(family, **models.VARIANTS[variant]), dtype, shard)
    policy = policy_of(source, parallel)
    origin = Origin.of(SafetensorsWeights(source, config=policy.hf))
    size = 9_000 if shard == "9KB" else 10**9
    write_directory(
        tmp_path / "out", policy.hf, policy.weights(), None, origin=origin, original_types=True, shard_bytes=size
    )
    assert_same_tensors(tmp_path / "out", source, dtype)
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert shards > 3 if shard == "9KB" else shards == 1
    names = {file.name for file in source.iterdir() if ".safetensors" not in file.name}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json"} <= names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict().items():
        assert torch.equal(again[name], tensor) and again[name].dtype == dtype


def assert_same_tensors(directory: Path, source: Path, dtype: torch.dtype) -> None:
    got, want = models.tensors(directory), models.tensors(source)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert tensor.dtype == got[name].dtype == dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_what_a_stage_writes_is_in_the_policys_type_with_the_rest_unchanged(parallel, tmp_path):
    """float32 is what goes on to be trained; config.json names it under the key that it had."""
    source = models.save(tmp_path / "source", models.config("llama"), torch.bfloat16)
    models.change_config(source, dtype=None, torch_dtype="bfloat16", my_own_key={"kept": [1, 2]})
    policy = policy_of(source, parallel)
    origin = Origin.of(SafetensorsWeights(source, config=policy.hf))
    write_directory(tmp_path / "out", policy.hf, policy.weights(), None, origin=origin)
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "out"))
    assert before | {"torch_dtype": "float32"} == after
    assert {tensor.dtype for tensor in models.tensors(tmp_path / "out").values()} == {torch.float32}
    got = models.tensors(tmp_path / "out")
    assert all(torch.equal(got[name], tensor.float()) for name, tensor in models.tensors(source).items())


def test_a_directory_that_vanishes_still_travels(parallel, tmp_path):
    source = models.save(tmp_path / "source", models.config("llama"))
    policy = policy_of(source, parallel)
    origin = Origin.of(SafetensorsWeights(source, config=policy.hf))
    source.rename(tmp_path / "elsewhere")
    write_directory(tmp_path / "out", policy.hf, policy.weights(), None, origin=origin, original_types=True)
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.chat_template.startswith("{% for m")


@pytest.mark.parametrize(
    ("family", "rope", "old"),
    [
        ("llama", "default", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("llama", "linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("qwen3", "theta", {"rope_theta": 1e6, "rope_scaling": None}),
        (
            "llama",
            "llama3",
            {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in models.LLAMA3.items() if k != "rope_theta"}},
        ),
        (
            "qwen3",
            "yarn",
            {"rope_theta": 10000.0, "rope_scaling": {k: v for k, v in models.YARN.items() if k != "rope_theta"}},
        ),
    ],
)
def test_configurations_of_transformers_4(family, rope, old, parallel, tmp_path):
    """rope_theta and rope_scaling of earlier versions say the same as rope_parameters."""
    changes = models.VARIANTS.get(rope, {}) | {"rms_norm_eps": 1e-6}
    hf = models.config(family, **changes)
    source = models.save(tmp_path / "source", hf)
    models.change_config(source, rope_parameters=None, **old)
    assert "rope_parameters" not in json.loads((source / "config.json").read_text())
    assert_like_transformers(policy_of(source, parallel), models.model(hf))


@pytest.mark.parametrize("name", ["biases", "llama3", "yarn", "tied"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_gradients_equal_transformers_autograd(family, name, parallel):
    hf = models.config(family, **models.VARIANTS[name])
    policy = MegatronPolicy(hf, parallel, torch.float64)
    policy.load_weights(models.model(hf, torch.float64).state_dict())
    model, rows = models.model(hf, torch.float64), models.sequences()
    tokens = sum(len(row.response) for row in rows)
    loss = sum(-models.response_log_probs(model, row).sum() for row in rows) / tokens
    loss.backward()
    policy.gradients(pack(rows, 200, SFT()), SFT())
    want = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, grad in stream(policy.model, hf, parallel, lambda p: p.main_grad):
        # transformers computes rotary angles in float32
        torch.testing.assert_close(grad, want[key], rtol=1e-5, atol=2e-6, msg=key)


def test_biases_are_trained_but_not_decayed(parallel):
    hf = models.config("llama", attention_bias=True)
    policy = MegatronPolicy(hf, parallel, torch.float32)
    policy.load_weights(models.model(hf).state_dict())
    policy.start_stage(AdamSettings(weight_decay=0.5))
    model, rows = models.model(hf), models.sequences()
    vectors = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    tokens = sum(len(row.response) for row in rows)
    for _ in range(2):
        policy.train_step(pack(rows, 200, SFT()), SFT(), 1e-2)
        adam.zero_grad()
        (sum(-models.response_log_probs(model, row).sum() for row in rows) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    after = dict(model.named_parameters())
    start = models.model(hf).state_dict()
    for name, weight in policy.weights():
        torch.testing.assert_close(weight, after[name].detach(), rtol=0, atol=1e-3, msg=name)
        assert not torch.equal(weight, start[name]), name


def test_the_frozen_model_and_the_rollout_engine_compute_the_same(hf, parallel):
    """The trunk reads log-probs, and rollouts through the stream of weights tell the policy's own."""
    policy = MegatronPolicy(hf, parallel, torch.float32)
    state = models.model(hf).state_dict()
    policy.load_weights(state)
    frozen = FrozenModel(hf, state, parallel, torch.float32, 200)
    batches = pack(models.sequences(), 200)
    for (got, _), want in zip(policy.logprobs(batches), frozen.logprobs(batches), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    engine = build_engine(
        "auto",
        hf,
        eos=1,
        pad=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_batch=8,
        memory_limit_gb=1.0,
    )
    engine.load_weights(policy.weights())
    rollouts = engine.generate([[5, 6, 7], [8]], [1, 2], max_new_tokens=60, temperature=1.0)
    rows = [Sequence(torch.tensor(r.prompt), torch.tensor(r.response), "rollout") for r in rollouts]
    for batch, (logprob, _) in zip(batches := pack(rows, 200), policy.logprobs(batches), strict=True):
        for index, got in zip(batch.index_N, batch.responses(logprob), strict=True):
            torch.testing.assert_close(got, rollouts[index].logprob, rtol=1e-5, atol=1e-5)


def test_models_that_compute_otherwise_have_other_hashes():
    state = models.model(models.config("llama")).state_dict()
    kinds = [{}, *(models.VARIANTS[name] for name in ("theta", "linear", "llama3", "yarn", "yarn-attention"))]
    hashes = {model_hash(models.config("llama", **changes), state) for changes in kinds}
    assert len(hashes) == len(kinds)


def test_embeddings_may_have_more_rows_than_the_tokenizer(parallel, tmp_path):
    """… and what no token names is carried along, as it is in Qwen's and padded Llama checkpoints."""
    source = models.save(tmp_path / "source", models.config("qwen3"))
    policy = policy_of(source, parallel)
    assert len(read_tokenizer(source, policy.hf)) == 40 < policy.hf.vocab_size == models.VOCABULARY
    assert dict(policy.weights())["model.embed_tokens.weight"].shape[0] == models.VOCABULARY
