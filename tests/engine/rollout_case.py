"""What is decoded and measured, in one process and under torchrun."""

from __future__ import annotations

import tiny
import torch
from live_bytes import LiveBytes
from safetensors.torch import save

from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.stream import stream
from aapa.engine.rollout import RolloutEngine, build_engine, sample_seed

LAYERS = 4
# (temperature, end of sequence, sequences at a time, new tokens). A temperature near 0 is greedy decoding; with some
# ends of sequence groups are over early, with 3 sequences at a time not every pipeline stage has one.
CASES = ((0.9, 1, 64, 20), (1e-4, 1, 64, 20), (0.9, 40, 5, 30), (1.5, 7, 3, 30), (1.5, 7, 64, 1))
BUCKET = 40_000


def prompts(count: int = 13) -> tuple[list[list[int]], list[int]]:
    g = torch.Generator().manual_seed(3)
    rows = [torch.randint(2, tiny.VOCABULARY, (1 + i % 9,), generator=g).tolist() for i in range(count)]
    return rows, [sample_seed("case", i) for i in range(count)]


def policy(parallel: Parallel, layers: int = LAYERS) -> MegatronPolicy:
    made = MegatronPolicy(tiny.config(True, layers), parallel, torch.float32)
    made.load_weights(tiny.hf_model(True, torch.float32, layers=layers).state_dict())
    return made


def engine(name: str, eos: int, max_batch: int, policy: MegatronPolicy | None) -> RolloutEngine:
    made = build_engine(
        name,
        tiny.config(True, LAYERS),
        eos=eos,
        pad=0,
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_batch=max_batch,
        memory_limit_gb=1.0,
        policy=policy,
    )
    made.load_weights(tiny.hf_model(True, torch.float32, layers=LAYERS).state_dict().items())
    return made


def decoded(policy: MegatronPolicy | None) -> list:
    """[response, finished, log-probs] of every case and prompt, by the policy or, without one, by transformers."""
    name = "transformers" if policy is None else "megatron"
    found = []
    rows, seeds = prompts()
    for temperature, eos, max_batch, length in CASES:
        made = engine(name, eos, max_batch, policy)
        rollouts = made.generate(rows, seeds, max_new_tokens=length, temperature=temperature)
        found.append([[r.response, r.finished, r.logprob.tolist()] for r in rollouts])
    return found


def rollout_bytes(parallel: Parallel) -> dict[str, list[int]]:
    """For models of 4 and 8 layers: (peak beside the weights, the key-value cache's bytes on this rank)."""
    found = {}
    for layers in (4, 8):
        made = policy(parallel, layers)
        rows = [[5, 6, 7, 8]] * 32
        engine = build_engine(
            "megatron",
            made.hf,
            eos=-1,  # nobody ends before the limit
            pad=0,
            dtype=torch.float32,
            device=parallel.device,
            max_batch=32,
            memory_limit_gb=1.0,
            policy=made,
        )
        known = [tensor for chunk in made.chunks for tensor in (*chunk.parameters(), *chunk.buffers())]
        with LiveBytes([*known, *(p.main_grad for chunk in made.chunks for p in chunk.parameters())]) as live:
            engine.generate(rows, list(range(32)), max_new_tokens=40, temperature=1.0)
        heads = made.hf.num_key_value_heads // parallel.tensor
        own = 32 * (4 + 40) * heads * made.hf.head_dim * 4 * 2 * layers // parallel.pipeline // parallel.context
        found[str(layers)] = [live.peak, own]
    return found


def stream_bytes(parallel: Parallel) -> int:
    """Peak beside the weights of streaming them in buckets.

    The least of three, for gloo's thread may hold the tensors of a collective a moment longer than the call.
    """
    made = policy(parallel)
    peaks = []
    for _ in range(3):
        with LiveBytes(p for chunk in made.chunks for p in chunk.parameters()) as live:
            for _ in stream(made.chunks, made.hf, parallel, bucket_bytes=BUCKET):
                pass
        peaks.append(live.peak)
    return min(peaks)


def bucketed_weights(parallel: Parallel) -> str:
    """All weights that came through small buckets."""
    made = policy(parallel)
    weights = {name: tensor.clone() for name, tensor in stream(made.chunks, made.hf, parallel, bucket_bytes=BUCKET)}
    return save(weights).hex()
