"""A frozen model in the policy's parallel layout: the discriminator's trunk, or the KL reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig

from aapa.batch import Sequence, TokenBatch
from aapa.engine.policy.model import PolicyModel, build_model
from aapa.engine.policy.offload import Offload
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.schedule import head_outputs, run_schedule
from aapa.engine.policy.shard import Shard
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


def model_hash(hf: PretrainedConfig, weights: Mapping[str, Tensor], layer: int = -1) -> str:
    """SHA-256 over the weights, the configuration and the layer; models with equal hashes compute the same."""
    facts = {name: getattr(hf, name, None) for name in CONFIGURATION}
    identity = f"{weights_hash(weights.items())} layer {layer} {sorted(facts.items(), key=str)}"
    return hashlib.sha256(identity.encode()).hexdigest()


class FrozenModel:
    """Hidden states and log-probs of a model that does not train.

    Attributes:
        model_hash: of the model itself, see there.
        hash: of everything that decides the sentence features, the log-prob features included.
        hidden_size: features of a sentence: D, and two more with log-prob features.
    """

    def __init__(
        self,
        hf: PretrainedConfig,
        weights: Mapping[str, Tensor],
        parallel: Parallel,
        dtype: torch.dtype,
        micro_batch_tokens: int,
        layer: int = -1,
        logprob_features: bool = False,
    ) -> None:
        """`layer` -1 takes the final normed hidden state; 1 … num_layers the output of that layer, not normed.

        With `logprob_features` two more features follow a sentence's mean state: mean and minimum of its tokens'
        log-probs under this model, at temperature 1.
        """
        layers = hf.num_hidden_layers
        if layer != -1 and not 1 <= layer <= layers:
            raise ValueError(f"discriminator.layer: expected -1 or 1 … {layers}, got {layer}")
        if logprob_features and layer != -1:
            raise ValueError(f"discriminator.layer: expected -1 beside log-prob features, got {layer}")
        # Chunks pay where passes go both ways; a trunk of some layers need not divide into them.
        parallel = replace(parallel, virtual=1)
        self.hf, self.parallel, self.layer = hf, parallel, layer
        self.logprob_features = logprob_features
        self.micro_batch_tokens = micro_batch_tokens
        self.model_hash = self.hash = model_hash(hf, weights, layer)
        if dtype.itemsize < 4:
            # States of 16 bits are not those that a discriminator of 32 was fitted on.
            self.hash = hashlib.sha256(f"{self.hash} in {dtype}".encode()).hexdigest()
        if logprob_features:
            self.hash = hashlib.sha256(f"{self.hash} with log-probs".encode()).hexdigest()
        self.hidden_size = int(hf.hidden_size) + 2 * logprob_features
        self.model = build_model(hf, parallel, dtype, None if layer == -1 else layer, final_norm=layer == -1)
        self.model.to(parallel.device).eval().requires_grad_(False)
        load(self.model, hf, parallel, weights, source="discriminator.trunk")
        self._offload = Offload(self.model.parameters)
        self._rest()

    def _rest(self) -> None:
        if self.parallel.offload:
            self._offload.out()

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        """Features of every sentence, [sum of sentences, hidden_size], on every rank of the replica.

        The mean hidden state, float32 (float64 for a model of float64).

        Args:
            prompts, responses: token ids.
            cu_sents: of each response, int32 [K_i + 1] offsets of its sentences; an empty response has none.
        """
        return self.read(prompts, responses, cu_sents)[0]

    @torch.no_grad()
    def read(
        self,
        prompts: list[list[int]],
        responses: list[list[int]],
        cu_sents: list[Tensor],
        temperature: float | None = None,
    ) -> tuple[Tensor, list[Tensor] | None]:
        """`sentence_states`, and from the same forward pass the log-probs of each response's tokens.

        Args:
            temperature: of the log-probs, list of [R_i]; None for none.
        """
        assert temperature is None or self.shares_forward(temperature), "one pass cannot serve both"
        sequences = [
            Sequence(torch.tensor(p), torch.tensor(r, dtype=torch.long), "rollout", temperature=temperature or 1.0)
            for p, r in zip(prompts, responses, strict=True)
        ]
        if not sequences:
            return torch.zeros(0, self.hidden_size), None if temperature is None else []
        # Sequences of similar length share a micro-batch, so that attention pads little.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        batches = pack([sequences[i] for i in order], self.micro_batch_tokens)
        spans = [_spans(batch, [cu_sents[order[i]] for i in batch.index_N]) for batch in batches]
        bounds = [bounds for bounds, _ in spans]
        outputs = self._outputs(batches, bounds, temperature is not None)
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        logprobs: list[Tensor] = [torch.empty(0)] * len(sequences)
        for batch, (mean_SD, logprob_T), (_, keep) in zip(batches, outputs, spans, strict=True):
            for place, rows in zip(batch.index_N, keep, strict=True):
                found[order[place]] = mean_SD[rows].cpu()
            if logprob_T is not None:
                for place, values in zip(batch.index_N, batch.responses(logprob_T.cpu()), strict=True):
                    logprobs[order[place]] = values
        return torch.cat(found), None if temperature is None else logprobs

    def shares_forward(self, temperature: float) -> bool:
        """Whether log-probs at this temperature come with the sentence features from one pass."""
        return self.layer == -1 and (not self.logprob_features or temperature == 1.0)

    @torch.no_grad()
    def logprobs(self, batches: list[TokenBatch]) -> list[Tensor]:
        """[T] log-probs of each batch's targets."""
        assert self.layer == -1, "a trunk that ends at an inner layer has no head"
        self._offload.back()
        head = self.model.head_weight
        parts = head_outputs([self.model], head, batches, self.parallel, self.hf.vocab_size, entropy=False)
        self._rest()
        return [logprob for logprob, _ in parts]

    def _outputs(
        self, batches: list[TokenBatch], bounds: list[Tensor], with_logprobs: bool
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Features of all spans of each batch, and the log-probs of its targets where they are wanted."""

        def output_of(place: int, shard: Shard) -> Callable[..., tuple[Tensor, Tensor | None]]:
            def head(hidden: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor | None]:
                whole_TD = shard.whole_hidden(hidden[:, 0])
                return self._head(whole_TD, shard.batch, bounds[place].to(hidden.device), with_logprobs)

            return head

        self._offload.back()
        outputs = run_schedule([self.model], batches, self.parallel, output_of, forward_only=True)
        self._rest()
        if self.parallel.pipeline == 1:
            return outputs
        results: list[tuple[Tensor, Tensor | None]] = []
        dtype, device = statistics_dtype(self.model), self.parallel.device
        for index, (batch, cu_sents) in enumerate(zip(batches, bounds, strict=True)):
            mean_SD = torch.empty(len(cu_sents) - 1, self.hidden_size, dtype=dtype, device=device)
            logprob_T = torch.empty(len(batch.token_T), dtype=dtype, device=device) if with_logprobs else None
            if self.parallel.last_stage:
                mean_SD, logprob_T = outputs[index]
            results.append(
                (
                    self.parallel.from_last_stage(mean_SD),
                    None if logprob_T is None else self.parallel.from_last_stage(logprob_T),
                )
            )
        return results

    def _head(
        self, hidden_TD: Tensor, batch: TokenBatch, cu_sents: Tensor, with_logprobs: bool
    ) -> tuple[Tensor, Tensor | None]:
        needed = with_logprobs or self.logprob_features
        logprob_T, mean_SD = reference_head(
            hidden_TD,
            self.model.head_weight() if needed else None,
            batch.target_T if needed else None,
            cu_sents,
            temperature=batch.temperature_T,
            vocab_size=self.hf.vocab_size,
            tp_group=self.parallel.split_group,
        )
        assert mean_SD is not None
        if self.logprob_features:
            assert logprob_T is not None
            mean_SD = torch.cat([mean_SD, _logprob_features(logprob_T, cu_sents).to(mean_SD.dtype)], dim=1)
        return mean_SD, logprob_T if with_logprobs else None


def statistics_dtype(model: PolicyModel) -> torch.dtype:
    """Type of what a head computes."""
    return torch.float64 if model.config.params_dtype == torch.float64 else torch.float32


def _logprob_features(logprob_T: Tensor, bounds: Tensor) -> Tensor:
    """[S, 2] mean and minimum of the log-probs of each span's own tokens."""
    # Entry t speaks of token t + 1; the first token of a sequence lies in a prompt, whose span nobody reads.
    own_T = torch.cat([logprob_T.new_zeros(1), logprob_T[:-1]])
    lengths = bounds.diff().long()
    parts = [torch.segment_reduce(own_T, how, lengths=lengths, unsafe=True) for how in ("mean", "min")]
    return torch.stack(parts, dim=1)


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
