"""A frozen model in the policy's parallel layout: the discriminator's trunk, or the KL reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig

from aapa.batch import Sequence, TokenBatch
from aapa.engine.policy.megatron import head_outputs, run_schedule
from aapa.engine.policy.model import build_model
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.stream import load
from aapa.kernels import reference_head
from aapa.packing import pack

# What decides a forward pass beside the weights and their shapes.
CONFIGURATION = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
)


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FrozenModel:
    """Hidden states and log-probs of a model that does not train.

    Attributes:
        hash: SHA-256 over the weights, the configuration and the layer; two models with equal hashes compute the same.
        hidden_size: D.
    """

    def __init__(
        self,
        hf: PretrainedConfig,
        weights: Mapping[str, Tensor],
        parallel: Parallel,
        dtype: torch.dtype,
        micro_batch_tokens: int,
        layer: int = -1,
    ) -> None:
        """`layer` -1 takes the final normed hidden state; 1 … num_layers the output of that layer, not normed."""
        layers = hf.num_hidden_layers
        if layer != -1 and not 1 <= layer <= layers:
            raise ValueError(f"discriminator.layer: expected -1 or 1 … {layers}, got {layer}")
        self.hf, self.parallel, self.layer = hf, parallel, layer
        self.micro_batch_tokens = micro_batch_tokens
        facts = {name: getattr(hf, name, None) for name in CONFIGURATION}
        identity = f"{weights_hash(weights.items())} layer {layer} {sorted(facts.items(), key=str)}"
        self.hash = hashlib.sha256(identity.encode()).hexdigest()
        self.hidden_size = int(hf.hidden_size)
        self.model = build_model(hf, parallel, dtype, None if layer == -1 else layer, final_norm=layer == -1)
        self.model.to(parallel.device).eval().requires_grad_(False)
        load(self.model, hf, parallel, weights, source="discriminator.trunk")

    @torch.no_grad()
    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        """Mean hidden state of every sentence, float32 [sum of sentences, D], on every rank of the replica.

        Args:
            prompts, responses: token ids.
            cu_sents: of each response, int32 [K_i + 1] offsets of its sentences; an empty response has none.
        """
        sequences = [
            Sequence(torch.tensor(p), torch.tensor(r, dtype=torch.long), "rollout")
            for p, r in zip(prompts, responses, strict=True)
        ]
        if not sequences:
            return torch.zeros(0, self.hidden_size)
        # Sequences of similar length share a micro-batch, so that attention pads little.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        batches = pack([sequences[i] for i in order], self.micro_batch_tokens)
        spans = [_spans(batch, [cu_sents[order[i]] for i in batch.index_N]) for batch in batches]
        bounds = {id(batch): bounds for batch, (bounds, _) in zip(batches, spans, strict=True)}
        means = self._means(batches, lambda batch: bounds[id(batch)])
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for batch, mean_SD, (_, keep) in zip(batches, means, spans, strict=True):
            for place, rows in zip(batch.index_N, keep, strict=True):
                found[order[place]] = mean_SD[rows].float()
        return torch.cat(found).cpu()

    @torch.no_grad()
    def logprobs(self, batches: list[TokenBatch]) -> list[Tensor]:
        """[T] log-probs of each batch's targets."""
        assert self.layer == -1, "a trunk that ends at an inner layer has no head"
        parts = head_outputs(self.model, self.model, batches, self.parallel, self.hf.vocab_size, entropy=False)
        return [logprob for logprob, _ in parts]

    def _means(self, batches: list[TokenBatch], bounds_of: Callable[[TokenBatch], Tensor]) -> list[Tensor]:
        iterator = iter(batches)

        def output_of(moved: TokenBatch) -> Callable[..., Tensor]:
            bounds = bounds_of(next(iterator))

            def head(hidden: Tensor, non_loss_data: bool = True) -> Tensor:
                _, mean_SD = reference_head(hidden[:, 0], None, None, bounds.to(hidden.device))
                assert mean_SD is not None
                return mean_SD

            return head

        outputs = run_schedule(self.model, batches, self.parallel, output_of, forward_only=True)
        if self.parallel.pipeline == 1:
            return outputs
        results = []
        for index, batch in enumerate(batches):
            rows = len(bounds_of(batch)) - 1
            empty = torch.empty(rows, self.hidden_size, device=self.parallel.device)
            results.append(self.parallel.from_last_stage(outputs[index] if self.parallel.last_stage else empty))
        return results


def _spans(batch: TokenBatch, cu_sents: list[Tensor]) -> tuple[Tensor, list[slice]]:
    """(offsets that tile the batch, with each prompt as one span; rows of each response's sentences)."""
    offsets = [0]
    rows = []
    starts = batch.cu_seqlens.tolist()[:-1]
    for start, prompt, cu in zip(starts, batch.prompt_N, cu_sents, strict=True):
        offsets.append(start + prompt)
        first = len(offsets) - 1
        offsets += [start + prompt + offset for offset in cu.tolist()[1:]]
        rows.append(slice(first, len(offsets) - 1))
    return torch.tensor(offsets, dtype=torch.int32), rows
