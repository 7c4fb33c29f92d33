"""Time of a step: an estimate from arithmetic, bytes and the makers' figures, with assumptions that are named.

The update is the longest stage of the pipeline, (m + (p - 1) / v) times (m micro-batches, p stages of v chunks: the
bubble of Narayanan et al. 2021, arXiv 2104.04473), what is communicated and not hidden, and Adam. A stage is its matrix
products at a share of the peak, and the bytes of its activations through memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from aapa.engine.flops import forward_flops, update_flops
from aapa.engine.plan.gpus import PER_NODE, Gpu
from aapa.engine.plan.layout import Layout
from aapa.engine.plan.memory import layer_bytes
from aapa.engine.plan.shapes import stage_parameters, state_bytes
from aapa.engine.plan.work import StageWork, Work


@dataclass(frozen=True)
class Assumptions:
    """Shares of the makers' figures that are reached. Guesses, but for what `calibration` says was measured.

    Attributes:
        matmul: of the peak, in large bf16 matrix products.
        matmul_float32: of the same peak, with float32 parameters and activations (TF32 off: no tensor cores).
        memory: of the memory's bandwidth.
        link: of NVLink's and the network's bandwidth.
        layer_seconds: to launch a layer's operations from Python, which bounds decoding from below.
        latency: seconds of a small collective.
        update: measured MFU of a whole update on one GPU, in place of the first three; None where there is none.
        measured: what of this was measured, in words.
    """

    matmul: float = 0.65
    matmul_float32: float = 0.06
    memory: float = 0.8
    link: float = 0.7
    layer_seconds: float = 2e-4
    latency: float = 2e-5
    update: float | None = None
    measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds of a step by phase, and what explains them.

    Attributes:
        bubble: share of the update in which the longest stage waits for others.
        volumes: bytes that a rank sends in a step, by kind of group.
        communication: seconds of the update that are spent on it and not hidden.
        mfu: useful FLOP of the updates over their seconds and the GPUs' bf16 peak.
    """

    phases: Mapping[str, float]
    bubble: float
    volumes: Mapping[str, float]
    communication: float
    mfu: float
    micro_batches: int

    @property
    def step(self) -> float:
        return sum(self.phases.values())


class Clock:
    """Times one layout on one kind of GPU."""

    def __init__(self, hf: PretrainedConfig, layout: Layout, work: Work, gpu: Gpu, assumed: Assumptions) -> None:
        self.hf, self.layout, self.work, self.gpu, self.assumed = hf, layout, work, gpu, assumed
        self.crosses = layout.crosses_nodes(PER_NODE)
        share = assumed.matmul if work.width < 4 else assumed.matmul_float32
        self.flops = gpu.flops * share
        self.bandwidth = gpu.bandwidth * assumed.memory

    def link(self, kind: str) -> float:
        """Bytes per second of one rank in a collective of this kind."""
        return (self.gpu.network if self.crosses[kind] else self.gpu.link) * self.assumed.link

    def time(self, stage: StageWork) -> Timing:
        layout = self.layout
        micro_batches = self.work.micro_batches(stage, layout.data)
        tokens = self.work.micro_batch_size(stage, layout.data)
        volumes = self._volumes(stage, tokens, micro_batches)
        compute = self._stage_seconds(stage, tokens, forward_only=False)
        within = self._within_stage(volumes, micro_batches)
        one = compute + within
        waiting = (layout.pipeline - 1) / layout.virtual
        outside = self._gradient_seconds(volumes, one)
        optimizer_steps = stage.updates * stage.passes
        update = optimizer_steps * ((micro_batches + waiting) * one + outside + self._adam_seconds())
        phases = {}
        if stage.rollouts:
            phases["rollout"] = self._rollout_seconds(stage)
        forwards = stage.trunk + stage.reference + stage.old_logprobs
        if forwards:
            forward = self._stage_seconds(stage, tokens, forward_only=True) + within / 3
            phases["scoring"] = (
                forwards * (micro_batches * stage.updates + waiting) * forward * stage.rollouts / stage.sequences
            )
        phases["update"] = update
        if layout.offload:
            phases["offloading"] = self._offload_seconds(stage)
        useful = update_flops(self.hf, [stage.length]) * stage.sequences * stage.passes
        return Timing(
            phases,
            waiting / (micro_batches + waiting),
            volumes,
            optimizer_steps * ((micro_batches + waiting) * within + outside),
            useful / (update * layout.gpus * self.gpu.flops),
            micro_batches,
        )

    def _stage_seconds(self, stage: StageWork, tokens: int, forward_only: bool) -> float:
        """Seconds of the longest pipeline stage for one micro-batch, without communication."""
        layout, hf = self.layout, self.hf
        spread = layout.tensor * layout.context
        sequences = tokens / stage.length
        head = 2.0 * tokens * hf.hidden_size * hf.vocab_size / spread
        whole = forward_flops(hf, [stage.length]) * sequences / spread
        body = (whole - head) / layout.pipeline
        again = 1 if layout.recompute == "full" else 0
        forward = body + head  # the last stage is the longest
        flops = forward if forward_only else 3 * forward + again * body
        if self.assumed.update is not None:
            return flops / (self.gpu.flops * self.assumed.update)
        # Every activation that is kept was written once and read once; backward moves it and its gradient.
        moved = 2 * layer_bytes(hf, layout, tokens, self.work.width) * hf.num_hidden_layers / layout.pipeline
        return flops / self.flops + (1 if forward_only else 3 + again) * moved / self.bandwidth

    def _volumes(self, stage: StageWork, tokens: int, micro_batches: int) -> dict[str, float]:
        """Bytes that a rank sends in one optimizer step, by kind."""
        layout, hf, width = self.layout, self.hf, self.work.width
        rows = tokens / layout.context
        row = width * hf.hidden_size
        layers = hf.num_hidden_layers / layout.pipeline
        found: dict[str, float] = {}
        if layout.tensor > 1:
            # Two all-reduces forward and two backward a layer, or as many pairs of all-gather and reduce-scatter, and
            # two gathers again for weight gradients (Korthikanti et al., section 4.2.2); more where layers run again.
            ring = (layout.tensor - 1) / layout.tensor
            times = 4 * 2 + (2 if layout.sequence else 0) + (4 if layout.recompute == "full" else 0)
            found["tensor"] = micro_batches * layers * times * ring * rows * row
        if layout.context > 1:
            # Keys and values of the other ranks are gathered forward, and their gradients scattered backward.
            keys = 2 * hf.num_key_value_heads * hf.head_dim * width / layout.tensor
            found["context"] = micro_batches * layers * 2 * (layout.context - 1) * rows * keys
        if layout.pipeline > 1:
            share = layout.tensor if layout.sequence else 1
            found["pipeline"] = micro_batches * layout.virtual * 2 * rows * row / share
        if layout.gradient_ranks > 1:
            ring = (layout.gradient_ranks - 1) / layout.gradient_ranks
            elements = max(self._elements(place) for place in (0, layout.pipeline - 1))
            times = 4 + width if layout.distributed_optimizer else 2 * 4
            found["data"] = ring * elements * times
        return found

    def _elements(self, place: int) -> int:
        return sum(p.numel for chunk in stage_parameters(self.hf, self.layout, place) for p in chunk)

    def _within_stage(self, volumes: Mapping[str, float], micro_batches: int) -> float:
        """Communication of one micro-batch that its computation waits for."""
        kinds = ("tensor", "context", "pipeline")
        return sum(volumes[kind] / self.link(kind) for kind in kinds if kind in volumes) / micro_batches

    def _gradient_seconds(self, volumes: Mapping[str, float], one: float) -> float:
        """Reduction of the gradients (and gathering of parameters) after the last micro-batch."""
        if "data" not in volumes:
            return 0.0
        kind = "data" if self.layout.data > 1 else "context"
        seconds = volumes["data"] / self.link(kind)
        # Hidden under the backward pass of the last micro-batch, two thirds of it.
        return max(0.0, seconds - 2 / 3 * one) if self.layout.overlap else seconds

    def _adam_seconds(self) -> float:
        """Reads gradient, moments and parameter, writes moments and parameter."""
        states = [
            state_bytes(self.hf, self.layout, place, 0, self.work.width) for place in (0, self.layout.pipeline - 1)
        ]
        return max(2 * state.optimizer + state.gradients + 2 * state.weights for state in states) / self.bandwidth

    def _offload_seconds(self, stage: StageWork) -> float:
        """Optimizer states to the host and back, frozen models back and out again; gradients are dropped."""
        ends = (0, self.layout.pipeline - 1)
        states = [state_bytes(self.hf, self.layout, place, 0, self.work.width) for place in ends]
        frozen = stage.trunk + stage.reference
        moved = max(2 * (state.optimizer + frozen * state.weights) for state in states)
        return moved / (self.gpu.host * self.assumed.link)

    def _rollout_seconds(self, stage: StageWork) -> float:
        """Prefill, and one pass over weights and cache per token and batch of sequences.

        Pipeline stages decode different sequences at the same time; one token of each passes all layers.
        """
        hf, layout, width = self.hf, self.layout, self.work.width
        alone = self.work.samples_with(layout) == "transformers"
        tensor = 1 if alone else layout.tensor
        mine, batch = self.work.decoded(stage, layout)
        waves = math.ceil(mine / batch)
        weights = state_bytes(hf, Layout(tensor=tensor), 0, 0, width).weights
        cached = 2.0 * width * batch * (stage.prompt + stage.response / 2) * hf.num_hidden_layers
        cached *= hf.num_key_value_heads * hf.head_dim / tensor
        token_flops = forward_flops(hf, [1]) * batch / tensor
        token = max((weights + cached) / self.bandwidth, token_flops / self.flops)
        token = max(token, hf.num_hidden_layers * self.assumed.layer_seconds)
        if tensor > 1:
            token += 2 * hf.num_hidden_layers * self.assumed.latency
        prefill = forward_flops(hf, [stage.prompt]) * batch / tensor / self.flops
        return waves * (prefill + stage.response * token)
