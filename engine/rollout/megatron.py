"""Rollouts by the policy itself, in its parallel layout, with a key-value cache and no second copy of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from aapa.engine.policy.decoding import decode
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.rollout.base import Rollout
from aapa.engine.rollout.sample import draw, uniform_numbers


class MegatronEngine:
    """Decodes on every rank of the replica. Context-parallel ranks, which all hold the weights, share the prompts.

    Attributes:
        on_every_rank: whether all ranks of a replica call `generate`, with the same prompts.
    """

    on_every_rank = True

    def __init__(self, policy: MegatronPolicy, *, eos: int, max_batch: int) -> None:
        self.policy, self.eos, self.max_batch = policy, eos, max_batch

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing to take over: the weights are the policy's own."""

    def generate(
        self, prompts: list[list[int]], seeds: list[int], *, max_new_tokens: int, temperature: float
    ) -> list[Rollout]:
        parallel = self.policy.parallel
        self.policy.finish_gather()
        # Prompts of similar length share a batch, so that the cache has little room that nobody uses.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        mine = order[parallel.context_rank :: parallel.context]
        found: dict[int, Rollout] = {}
        for start in range(0, len(mine), self.max_batch):
            rows = mine[start : start + self.max_batch]
            batch = _Batch(rows, prompts, seeds, self, max_new_tokens, temperature)
            found.update(batch.rollouts())
        everything = {i: rollout for part in parallel.gather_over_context(found) for i, rollout in part.items()}
        return [everything[i] for i in range(len(prompts))]


class _Batch:
    """Rows that are decoded at a time, dealt to one group for each pipeline stage."""

    def __init__(
        self,
        rows: list[int],
        prompts: list[list[int]],
        seeds: list[int],
        engine: MegatronEngine,
        steps: int,
        temperature: float,
    ) -> None:
        self.policy, self.eos, self.prompts = engine.policy, engine.eos, prompts
        self.steps, self.temperature = steps, temperature
        stages = engine.policy.parallel.pipeline
        size = -(-len(rows) // stages)
        self.groups = [rows[place * size : (place + 1) * size] for place in range(stages)]
        device = engine.policy.parallel.device
        self.uniform = [
            uniform_numbers([seeds[i] for i in group], steps, device) if group else None for group in self.groups
        ]
        self.tokens: list[list[Tensor]] = [[] for _ in self.groups]
        self.logprobs: list[list[Tensor]] = [[] for _ in self.groups]
        self.finished = [torch.zeros(len(group), dtype=torch.bool, device=device) for group in self.groups]

    def rollouts(self) -> dict[int, Rollout]:
        """By place of the prompt, on every tensor and pipeline rank."""
        decode(self.policy, [[self.prompts[i] for i in group] for group in self.groups], self.steps, self._choose)
        parallel = self.policy.parallel
        box = [self._collected()] if parallel.last_stage else [None]
        if parallel.pipeline > 1:
            source = dist.get_global_rank(parallel.pipeline_group, parallel.pipeline - 1)
            dist.broadcast_object_list(box, src=source, group=parallel.pipeline_group)
        assert box[0] is not None
        return box[0]

    def _choose(self, number: int, step: int, logits_BV: Tensor) -> tuple[Tensor, bool]:
        uniform_BR = self.uniform[number]
        assert uniform_BR is not None
        token_B, logprob_B = draw(logits_BV, uniform_BR[:, step], self.temperature)
        self.tokens[number].append(token_B)
        self.logprobs[number].append(logprob_B)
        self.finished[number] |= token_B == self.eos
        return token_B, not bool(self.finished[number].all())

    def _collected(self) -> dict[int, Rollout]:
        found = {}
        for group, tokens, logprobs in zip(self.groups, self.tokens, self.logprobs, strict=True):
            if not group:
                continue
            token_BR, logprob_BR = torch.stack(tokens, dim=1).tolist(), torch.stack(logprobs, dim=1).cpu()
            for row, place in enumerate(group):
                finished = self.eos in token_BR[row]
                response = token_BR[row][: token_BR[row].index(self.eos) + 1] if finished else token_BR[row]
                found[place] = Rollout(self.prompts[place], response, finished, logprob_BR[row, : len(response)])
        return found
