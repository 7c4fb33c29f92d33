"""Decoding with the policy's own shard: groups of rows go round the pipeline in a ring.

Stage s works on group (t - s) mod P in tick t, for as many groups as there are stages, so that every stage has work in
every tick. Hidden states go to the next stage, and from the last stage the sampled tokens go back to the first. With an
interleaved pipeline a token goes round once for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from aapa.engine.policy.cache import Decode, KeyValueCache, Prefill
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.shard import gather_rows

# (group, step, [rows, vocabulary] logits) → ([rows] next tokens, whether the group needs more of them)
Choose = Callable[[int, int, Tensor], tuple[Tensor, bool]]
# What a rank tells the next one of a group: nothing comes, a tensor comes, the group has ended.
NOTHING, TENSOR, ENDED = 0, 1, 2


@torch.no_grad()
def decode(policy: MegatronPolicy, groups: list[list[list[int]]], steps: int, choose: Choose) -> None:
    """Decode up to `steps` tokens after each prompt.

    A collective over the tensor and pipeline ranks, all of which give the same.

    Args:
        groups: prompts of each group, token ids; as many groups as pipeline stages, of which some may be empty.
        choose: called on the last stage, by all its tensor-parallel ranks alike.
    """
    assert len(groups) == policy.parallel.pipeline, "expected a group for each stage"
    for chunk in policy.chunks:
        chunk.eval()
    _Ring(policy, groups, steps, choose).run()


class _Group:
    """Rows that are decoded together, as this rank sees them.

    Attributes:
        rows: how many there are; rows that fill them up for the layout come after them.
        passes: times that this stage has worked on them, once for each step and chunk.
        arrived: what the stage before sent for the next pass.
        ending: whether the next stage must still be told that the group has ended.
    """

    def __init__(self, prompts: list[list[int]], steps: int, parallel: Parallel) -> None:
        self.rows, self.active = len(prompts), bool(prompts)
        self.passes, self.ending = 0, False
        self.arrived: Tensor | None = None
        if not prompts:
            return
        multiple, device = (parallel.tensor if parallel.sequence else 1), parallel.device
        filled = prompts + [[0]] * (-len(prompts) % multiple)
        lengths = [len(prompt) for prompt in filled]
        self.cache = KeyValueCache(lengths, max(lengths) + steps, device)
        tail = -sum(lengths) % multiple
        bounds = torch.tensor([0, *lengths, *([tail] if tail else [])], device=device).cumsum(0)
        self.last_B = bounds[1 : self.rows + 1] - 1
        self.token_T = torch.tensor([token for prompt in filled for token in prompt] + [0] * tail, device=device)
        self.position_T = torch.cat([torch.arange(n, device=device) for n in [*lengths, tail]])
        self.prefill = Prefill(bounds.int(), max(*lengths, tail), self.cache)
        self.decode = Decode(self.cache)


class _Ring:
    def __init__(self, policy: MegatronPolicy, prompts: list[list[list[int]]], steps: int, choose: Choose) -> None:
        self.policy, self.parallel = policy, policy.parallel
        self.steps, self.chunks, self.choose = steps, policy.parallel.virtual, choose
        self.groups = [_Group(rows, steps, policy.parallel) for rows in prompts]
        # The tick before which all ranks stop. The last stage sets it, and it travels with the messages.
        self.stop: int | None = None

    def run(self) -> None:
        tick, stages = 0, self.parallel.pipeline
        if not any(group.active for group in self.groups):
            return
        while self.stop is None or tick < self.stop:
            turn = tick - self.parallel.pipeline_rank
            flag, out = NOTHING, None
            if turn >= 0:
                flag, out = self._turn(turn % stages)
            if self.parallel.last_stage and self.stop is None and not any(group.active for group in self.groups):
                self.stop = tick + stages  # the news has come to every stage by then
            if stages > 1:
                self._exchange(self.groups[(turn + 1) % stages], flag, out)
            tick += 1

    def _turn(self, number: int) -> tuple[int, Tensor | None]:
        """One pass of this stage over a group; what to tell the next stage of it."""
        group = self.groups[number]
        if group.ending:
            group.ending = False
            # It is the last stage that ended the group.
            return (NOTHING if self.parallel.pipeline_rank == self.parallel.pipeline - 2 else ENDED), None
        if not group.active:
            return NOTHING, None
        step, chunk = divmod(group.passes, self.chunks)
        hidden = self._forward(group, step, chunk)
        group.passes += 1
        group.active = group.passes < self.steps * self.chunks
        if not (self.parallel.last_stage and chunk == self.chunks - 1):
            return TENSOR, hidden
        token_B, more = self.choose(number, step, self._logits(group, step, hidden))
        filling = token_B.new_zeros(group.cache.rows - group.rows)
        token_B = group.arrived = torch.cat([token_B, filling])
        if not group.active:
            return NOTHING, None  # every stage counts the steps
        group.active = more
        return (TENSOR, token_B) if more else (ENDED, None)

    def _forward(self, group: _Group, step: int, chunk: int) -> Tensor:
        """This stage's layers on the group's new tokens, [rows of this rank, 1, D]."""
        model, cache = self.policy.chunks[chunk], group.cache
        takes_tokens = self.parallel.first_stage and chunk == 0
        arrived = group.arrived
        assert arrived is not None or (takes_tokens and step == 0), "a group's turn came before its input"
        model.set_input_tensor(None if takes_tokens else arrived)
        if step == 0:
            hidden = model(group.token_T[None], group.position_T[None], None, packed_seq_params=group.prefill)
        else:
            # Later stages read no tokens, but Megatron wants some.
            token_B = arrived if takes_tokens and arrived is not None else cache.length_B
            hidden = model(token_B[None], cache.length_B[None], None, packed_seq_params=group.decode)
        if step > 0 and chunk == self.chunks - 1:
            cache.advance()
        return hidden

    def _logits(self, group: _Group, step: int, hidden: Tensor) -> Tensor:
        """[rows, vocabulary] float32 (float64 in a model of float64), equal on the tensor-parallel ranks."""
        parallel = self.parallel
        hidden = gather_rows(hidden[:, 0], parallel)
        hidden = hidden[group.last_B] if step == 0 else hidden[: group.rows]
        logits = hidden @ self.policy.head_weight().t()
        if logits.dtype != torch.float64:
            logits = logits.float()
        if parallel.tensor > 1:
            parts = logits.new_empty(parallel.tensor * logits.shape[0], logits.shape[1])
            dist.all_gather_into_tensor(parts, logits.contiguous(), group=parallel.tensor_group)
            logits = torch.cat(parts.chunk(parallel.tensor), dim=1)
        return logits[:, : self.policy.hf.vocab_size]

    def _exchange(self, group: _Group, flag: int, out: Tensor | None) -> None:
        """Send what the next stage's turn needs, and receive what this stage's next turn, on `group`, needs.

        Both are one batch of messages: ranks that only sent would wait for each other all round the ring.
        """
        device = self.parallel.device
        told = torch.tensor([flag, -1 if self.stop is None else self.stop], device=device)
        heard = torch.empty_like(told)
        self._pass_on(told, heard)
        flag, stop = heard.tolist()
        if stop >= 0:
            self.stop = stop
        arriving = self._room(group) if flag == TENSOR else None
        self._pass_on(out, arriving)
        if flag == TENSOR:
            group.arrived = arriving
        elif flag == ENDED:
            group.active, group.ending = False, True

    def _room(self, group: _Group) -> Tensor:
        """Space for what a group's next pass on this stage begins with."""
        step, chunk = divmod(group.passes, self.chunks)
        parallel, config = self.parallel, self.policy.chunks[0].config
        if parallel.first_stage and chunk == 0:
            return torch.empty(group.cache.rows, dtype=torch.long, device=parallel.device)
        rows = (len(group.token_T) if step == 0 else group.cache.rows) // (parallel.tensor if parallel.sequence else 1)
        return torch.empty(rows, 1, config.hidden_size, dtype=config.params_dtype, device=parallel.device)

    def _pass_on(self, out: Tensor | None, into: Tensor | None) -> None:
        ring, rank, stages = self.parallel.pipeline_group, self.parallel.pipeline_rank, self.parallel.pipeline
        operations = []
        if out is not None:
            following = dist.get_global_rank(ring, (rank + 1) % stages)
            operations.append(dist.P2POp(dist.isend, out.contiguous(), following, ring))
        if into is not None:
            previous = dist.get_global_rank(ring, (rank - 1) % stages)
            operations.append(dist.P2POp(dist.irecv, into, previous, ring))
        for request in dist.batch_isend_irecv(operations) if operations else ():
            request.wait()
