"""Rollouts by `transformers`' own generation loop, from a second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
)

from aapa.engine.errors import UserError
from aapa.engine.rollout.base import Rollout
from aapa.engine.rollout.sample import draw, uniform_numbers


class SeededSampling(LogitsProcessor):
    """Draws each row's next token from that row's own random numbers, and leaves it as the only choice."""

    def __init__(self, seeds: list[int], max_new_tokens: int, temperature: float, device: torch.device) -> None:
        self.uniform_BR = uniform_numbers(seeds, max_new_tokens, device)
        self.temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_B, logprob_B = draw(scores, self.uniform_BR[:, len(self.logprobs)], self.temperature)
        self.logprobs.append(logprob_B)
        return torch.full_like(scores, float("-inf")).scatter_(1, token_B[:, None], 0.0)


class TransformersEngine:
    """The default where the policy is not split; refuses models above a memory bound."""

    on_every_rank = False

    def __init__(
        self,
        hf: PretrainedConfig,
        *,
        eos: int,
        pad: int,
        dtype: torch.dtype,
        device: torch.device,
        max_batch: int,
        memory_limit_gb: float,
    ) -> None:
        with torch.device("meta"):
            shapes = AutoModelForCausalLM.from_config(hf)
        size_gb = sum(p.numel() for p in shapes.parameters()) * dtype.itemsize / 1e9
        if size_gb > memory_limit_gb:
            raise UserError(
                f"rollout.memory_limit_gb: expected at least {size_gb:.1f} for a second copy of this model, "
                f"got {memory_limit_gb}"
            )
        self.model = AutoModelForCausalLM.from_config(hf, dtype=dtype).to(device).eval().requires_grad_(False)
        self.eos, self.pad, self.device, self.max_batch = eos, pad, device, max_batch
        self._parameters = dict(self.model.named_parameters(remove_duplicate=False))

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        missing = set(self.model.state_dict())
        if self.model.config.tie_word_embeddings:
            missing.discard("lm_head.weight")
        for name, tensor in weights:
            self._parameters[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise ValueError(f"weights: expected a tensor {min(missing)!r} in the stream, got none")

    def generate(
        self, prompts: list[list[int]], seeds: list[int], *, max_new_tokens: int, temperature: float
    ) -> list[Rollout]:
        # Prompts of similar length share a batch, so that little is padded.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Rollout] = {}
        for start in range(0, len(order), self.max_batch):
            rows = order[start : start + self.max_batch]
            batch = self._generate([prompts[i] for i in rows], [seeds[i] for i in rows], max_new_tokens, temperature)
            results.update(zip(rows, batch, strict=True))
        return [results[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _generate(
        self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int, temperature: float
    ) -> list[Rollout]:
        longest = max(map(len, prompts))
        input_ids = torch.full((len(prompts), longest), self.pad)
        attention = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            attention[row, longest - len(prompt) :] = 1
        sampling = SeededSampling(seeds, max_new_tokens, temperature, self.device)
        out = self.model.generate(
            input_ids.to(self.device),
            attention_mask=attention.to(self.device),
            logits_processor=LogitsProcessorList([sampling]),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=self.eos,
                pad_token_id=self.pad,
                use_cache=True,  # checkpoints saved while training often say false, which only makes this slow
            ),
        )
        logprob_BR = torch.stack(sampling.logprobs, dim=1).float().cpu()
        rollouts = []
        for row, tokens in enumerate(out[:, longest:].tolist()):
            finished = self.eos in tokens
            response = tokens[: tokens.index(self.eos) + 1] if finished else tokens
            rollouts.append(Rollout(prompts[row], response, finished, logprob_BR[row, : len(response)]))
        return rollouts
