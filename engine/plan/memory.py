"""Memory of a rank, phase by phase.

What is held all the time follows from shapes (`shapes.py`, exact). Activations are counted in the manner of
Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), tensor by
tensor for the layer that is built here: grouped queries, norms of queries and keys, SwiGLU, no dropout, and attention
that never makes its scores. Their (1) is 34 s b h bytes a layer, with the scores left out; (2) divides by t what tensor
parallelism splits, (4) the rest where activations are split along the sequence, too, and under full recomputation a
layer keeps its input alone. A test compares the count with what autograd keeps on the CPU, byte by byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from aapa.engine.plan.layout import Layout
from aapa.engine.plan.shapes import StateBytes, state_bytes
from aapa.engine.plan.work import StageWork, Work
from aapa.kernels.chunked.plan import MAX_ROWS

PHASES = ("rollout", "scoring", "update")


@dataclass(frozen=True)
class Memory:
    """Bytes by phase and by what they are for."""

    phases: Mapping[str, Mapping[str, float]]

    def total(self, phase: str) -> float:
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def most(self) -> float:
        return self.total(self.peak)


def layer_bytes(hf: PretrainedConfig, layout: Layout, tokens: int, width: int, fused: bool = True) -> float:
    """What autograd keeps of one layer for the backward pass of `tokens` tokens of a micro-batch.

    With `fused` norms keep their input alone and attention reads packed sequences (flash-attn); without, as on the CPU,
    norms keep the normalised rows, too, and attention has padded copies (counted for sequences of one length).
    """
    tensor, rest = layout.tensor, layout.tensor if layout.sequence else 1
    tokens = tokens // layout.context
    heads, groups, dim = hf.num_attention_heads, hf.num_key_value_heads, hf.head_dim
    normed = hf.model_type == "qwen3"
    queries, keys = heads * dim, groups * dim
    # Inputs of both norms, and their outputs, which the linear layers keep.
    across = 4 * hf.hidden_size
    # q, k, v as projected; q once more, regrouped; rotated q and k; the context, which the output projection keeps;
    # gate and up, silu(gate), up with its offset, and their product.
    inside = (queries + 2 * keys) + queries * normed + (queries + keys) + queries + 5 * hf.intermediate_size
    # Row statistics of norms and softmax, in float32.
    small = 2 / rest + (normed * (heads + groups) + heads) / tensor
    if not fused:
        across += 2 * hf.hidden_size
        inside += normed * (queries + keys) + (queries + 2 * keys) + queries
    # Under context parallelism attention has the keys and values of all ranks' tokens.
    inside += 2 * keys * layout.context if layout.context > 1 else 0
    angles = 4 * dim
    return tokens * (width * (across / rest + inside / tensor + angles) + 4 * small)


def in_flight(layout: Layout, stage: int, micro_batches: int) -> int:
    """Chunks of layers whose activations a stage holds at the most: 1F1B, or the interleaved schedule.

    Of one micro-batch a stage has `virtual` chunks. Source: Narayanan et al. 2021 (arXiv 2104.04473), and Korthikanti
    et al., section 4.2.3: L (1 + (p - 1) / (p v)) layers on the first stage.
    """
    behind = layout.pipeline - 1 - stage
    if layout.virtual == 1:
        return min(micro_batches, behind + 1)
    return min(micro_batches * layout.virtual, 2 * behind + (layout.virtual - 1) * layout.pipeline + 1)


def activation_bytes(
    hf: PretrainedConfig, layout: Layout, stage: int, tokens: int, micro_batches: int, width: int
) -> float:
    """Activations of all micro-batches that a stage holds at a time."""
    layers = hf.num_hidden_layers // (layout.pipeline * layout.virtual)
    whole = layer_bytes(hf, layout, tokens, width)
    row = width * (tokens / layout.context) * hf.hidden_size / (layout.tensor if layout.sequence else 1)
    kept = row if layout.recompute == "full" else whole
    # Each chunk keeps its output, too. Under recomputation one layer at a time is whole.
    held = in_flight(layout, stage, micro_batches) * (layers * kept + row)
    return held + (whole if layout.recompute == "full" else 0.0)


def head_bytes(hf: PretrainedConfig, layout: Layout, tokens: int, width: int, gradients: bool) -> float:
    """Workspace of the fused head: whole hidden states, their float32 gradient, and a chunk of logits."""
    rows = tokens / layout.context
    columns = -(-hf.vocab_size // layout.tensor)
    chunk = min(rows, MAX_ROWS) * columns * (4 + (width if gradients else 0))
    return chunk + rows * hf.hidden_size * (width + (4 + width if gradients else 0))


def cache_bytes(hf: PretrainedConfig, layers: int, tensor: int, sequences: int, length: int, width: int) -> float:
    """Keys and values of `sequences` sequences at their full length, in `layers` layers."""
    return 2.0 * width * sequences * length * layers * hf.num_key_value_heads * hf.head_dim / tensor


def rank_memory(hf: PretrainedConfig, layout: Layout, work: Work, stage: StageWork, place: int) -> Memory:
    """Memory of the first replica's first tensor-parallel rank on pipeline stage `place`, in a stage of training."""
    state = state_bytes(hf, layout, place, 0, work.width)
    tokens = work.micro_batch_size(stage, layout.data)
    last = place == layout.pipeline - 1
    held = _held(state, layout, stage)
    leader = place == 0
    phases: dict[str, dict[str, float]] = {}
    if stage.rollouts:
        phases["rollout"] = _rollout(hf, layout, work, stage, state, held, leader)
    if stage.trunk or stage.reference or stage.old_logprobs:
        # Frozen models come one after the other where they wait in the host's memory.
        one = min(1, stage.trunk + stage.reference) * state.weights
        there = {**_without(held, "optimizer", "gradients"), "frozen models": one} if layout.offload else held
        phases["scoring"] = {
            **there,
            "activations": layer_bytes(hf, layout, tokens, work.width),
            "head": head_bytes(hf, layout, tokens, work.width, gradients=False) if last else 0.0,
        }
    micro_batches = work.micro_batches(stage, layout.data)
    phases["update"] = {
        **_without(held, "frozen models" if layout.offload else None),
        "activations": activation_bytes(hf, layout, place, tokens, micro_batches, work.width),
        "head": head_bytes(hf, layout, tokens, work.width, gradients=True) if last else 0.0,
    }
    if stage.reward_model_bytes and leader:
        for phase in phases.values():
            phase["reward model"] = stage.reward_model_bytes
    return Memory(phases)


def _held(state: StateBytes, layout: Layout, stage: StageWork) -> dict[str, float]:
    return {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "frozen models": state.weights * (stage.trunk + stage.reference),
    }


def _without(held: Mapping[str, float], *names: str | None) -> dict[str, float]:
    return {name: 0.0 if name in names else value for name, value in held.items()}


def _rollout(
    hf: PretrainedConfig,
    layout: Layout,
    work: Work,
    stage: StageWork,
    state: StateBytes,
    held: Mapping[str, float],
    leader: bool,
) -> dict[str, float]:
    found = _without(held, *(("optimizer", "gradients", "frozen models") if layout.offload else ()))
    _, sequences = work.decoded(stage, layout)
    if work.samples_with(layout) == "transformers":
        # The engine's own copy of the whole model lies on the leader alone.
        copy = state_bytes(hf, Layout(), 0, 0, work.width).weights if leader else 0
        cache = cache_bytes(hf, hf.num_hidden_layers, 1, sequences, stage.length, work.width) if leader else 0.0
        return {**found, "engine's copy": copy, "key-value cache": cache}
    layers = hf.num_hidden_layers // layout.pipeline
    return {**found, "key-value cache": cache_bytes(hf, layers, layout.tensor, sequences, stage.length, work.width)}
