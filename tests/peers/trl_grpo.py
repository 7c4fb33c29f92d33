"""A real `trl.GRPOTrainer` on a tiny model, and the same loss by our objectives.

TRL's own code makes the batch: a `rollout_func` hands it chosen token ids and sampling log-probs, and
`_generate_and_score_completions` pads, masks, scores and corrects them. The policy then moves on, so that ratios are
not 1, and `_compute_loss` gives the loss. Ours packs the same sequences and takes log-probs from a plain forward pass
of the same model in float64, each sequence by itself, without padding.

1e-6 is what can be asked of the two, since TRL's head computes in float32 whatever the model's type, and so do the
norms and rotary embeddings of transformers, which sees other positions without padding. `ours_exactly` leaves these
out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapa import GRPO
from aapa.batch import BatchCounts, Sequence, TokenBatch
from aapa.importance import importance_correction
from aapa.kernels import policy_loss
from aapa.packing import pack

VOCABULARY, PAD, EOS = 32, 0, 1
GROUP = 4
TEMPERATURE = 0.8
MAX_LENGTH = 12
TOLERANCE = 1e-6


@dataclass
class Rollouts:
    """Two groups of ragged rollouts as a `rollout_func` returns them; sampling log-probs follow the policy's.

    Attributes:
        rewards: what the reward function answers.
        tool_mask: whether some tokens inside of a response are another's, and so are not trained on.
        sampling_noise: standard deviation of (log-prob of the sampler - log-prob of the policy).
    """

    rewards: list[float | None] = field(default_factory=lambda: [1.0, 0.0, 0.5, 0.1, 0.0, 1.0, 0.25, 0.75])
    tool_mask: bool = False
    sampling_noise: float = 0.3

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.prompts = [[5, 6, 7]] * GROUP + [[8, 9, 10, 11, 12]] * GROUP
        self.completions = []
        for index in range(2 * GROUP):
            length = (4, 9, 1, 7, 12, 3, 6, 10)[index]
            tokens = torch.randint(2, VOCABULARY, (length,), generator=g).tolist()
            # Rollouts 1 and 4 count as truncated, for TRL looks at the last token.
            self.completions.append(tokens if index in (1, 4) else [*tokens[:-1], EOS])
        self.noise = [self.sampling_noise * torch.randn(len(c), generator=g) for c in self.completions]
        self.masks = [torch.ones(len(c), dtype=torch.bool) for c in self.completions]
        if self.tool_mask:
            self.masks[3][2:5] = False
            self.masks[7][:4] = False
        self.finished = [completion[-1] == EOS for completion in self.completions]

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`."""
        with torch.no_grad():
            policy = [logprobs(trainer.model, p, c) for p, c in zip(self.prompts, self.completions, strict=True)]
        sampled = [(logprob + noise).tolist() for logprob, noise in zip(policy, self.noise, strict=True)]
        sampled[3][0] = None  # vLLM does not know this one
        made = {"prompt_ids": self.prompts, "completion_ids": self.completions, "logprobs": sampled}
        return made | ({"env_mask": [mask.int().tolist() for mask in self.masks]} if self.tool_mask else {})

    def reward(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """TRL's reward function."""
        return self.rewards


def logprobs(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """[R] float64 log-probs of a response under the sampling temperature, by the model's plain forward pass."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def save_model(directory: Path) -> None:
    """A tiny random Qwen3 in float64; TRL loads its reference model from the directory."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float64).save_pretrained(directory)


def trl_settings(objective: GRPO) -> dict[str, Any]:
    """What an objective is called in TRL's `GRPOConfig`: the table of docs/objectives.md."""
    cispo = objective.surrogate == "cispo"
    named = {
        "num_generations": objective.group_size,
        "loss_type": "cispo" if cispo else objective.aggregation,
        "max_completion_length": objective.max_response_length or MAX_LENGTH,
        "epsilon": objective.clip_low,
        # TRL's bound of cispo is the ratio itself; there is no lower one, which is a clip_low of 1.
        "epsilon_high": 1.0 + objective.clip_high if cispo else objective.clip_high,
        "delta": objective.delta,
        "importance_sampling_level": objective.ratio_level,
        "beta": objective.beta,
        "use_bias_correction_kl": objective.kl_correction,
        "scale_rewards": objective.scale,
        "num_iterations": objective.epochs_per_rollout,
        "mask_truncated_completions": objective.mask_truncated,
    }
    if objective.correction != "none":
        named |= {
            "vllm_importance_sampling_mode": objective.correction,
            "vllm_importance_sampling_clip_min": objective.correction_min or None,
            "vllm_importance_sampling_clip_max": objective.correction_max,
        }
    return named


def build_trainer(directory: Path, rollouts: Rollouts, vllm: bool = False, **settings: Any) -> Any:
    """A `GRPOTrainer` whose policy has moved away from its reference, ready to make a batch.

    Args:
        directory: holds the model.
        vllm: whether the sampler's log-probs are corrected for, as TRL does with vLLM.
        settings: of `GRPOConfig`.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    config = GRPOConfig(
        output_dir=str(directory / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        temperature=TEMPERATURE,
        **({"per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP} | settings),
    )
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64),
            reward_funcs=rollouts.reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["w5", "w8"]}),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2"
            ),
            rollout_func=rollouts,
        )
    # What `train()` would set; vLLM itself is not there, so its switch is turned after the construction.
    trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps
    trainer.use_vllm, trainer._last_loaded_step = vllm, trainer.state.global_step
    trainer.model.train()
    shake(trainer.model, 0.02, seed=1)
    return trainer


def use_float64_head(trainer: Any) -> None:
    """Let TRL take its log-probs in float64, from the logits of its own padded batch."""

    def score(
        model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[Tensor, Tensor, None]:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        log_p = (logits / TEMPERATURE).log_softmax(-1)
        chosen = log_p.gather(2, input_ids[:, -logits_to_keep:, None])[..., 0]
        return chosen, -(log_p.exp() * log_p).sum(-1), None

    trainer._get_per_token_logps_and_entropies = score


def run_both(
    directory: Path, objective: GRPO, rollouts: Rollouts | None = None, ours_is: GRPO | None = None
) -> tuple[Result, Result]:
    """(ours, TRL's) of one batch, under the same objective unless ours is given."""
    rollouts = rollouts or Rollouts()
    corrected = objective.correction != "none"
    trainer = build_trainer(directory, rollouts, vllm=corrected, **trl_settings(objective))
    batch = generate(trainer)
    mine = objective if ours_is is None else ours_is
    masked = [mine.mask_truncated and not finished for finished in rollouts.finished]
    return ours(trainer, sequences_of(rollouts, batch, mine, masked), mine), theirs(trainer, [batch])


@torch.no_grad()
def shake(model: Any, scale: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=g, dtype=torch.float64))


def generate(trainer: Any, move: float = 0.03) -> dict[str, Any]:
    """TRL's batch of the rollouts, after which the policy moves on."""
    batch = trainer._generate_and_score_completions([{"prompt": "w5"}] * GROUP + [{"prompt": "w8"}] * GROUP)
    shake(trainer.model, move, seed=2)
    return batch


@dataclass
class Result:
    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float] = field(default_factory=dict)


def theirs(trainer: Any, batches: list[dict[str, Any]]) -> Result:
    """Sum of TRL's losses of micro-batches, and its gradient."""
    return _result(trainer.model, lambda: (sum(trainer._compute_loss(trainer.model, batch) for batch in batches), {}))


def ours(trainer: Any, sequences: list[Sequence], objective: GRPO, max_tokens: int = 10_000) -> Result:
    """Our loss of the same sequences, and its gradient, with log-probs of the same model."""
    counts = BatchCounts.of(sequences)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        total, sums = torch.zeros((), dtype=torch.float64), {}
        for batch in pack(sequences, max_tokens, objective, counts):
            loss, metrics = policy_loss(packed_logprobs(trainer.model, batch), None, *objective.lower(batch))
            total = total + loss
            sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
        return total, sums

    return _result(trainer.model, run)


def ours_exactly(trainer: Any, sequences: list[Sequence], objective: GRPO, trl_batch: dict[str, Any]) -> Result:
    """Our loss of TRL's own log-probs, which `use_float64_head` has made float64, and with weights in float64."""
    (batch,) = pack(sequences, 10_000, objective)
    fields, spec = objective.lower(batch)
    counts = BatchCounts.of(sequences)
    rows = []
    for sequence in sequences:
        row = torch.zeros(len(sequence), dtype=torch.float64)
        row[len(sequence.prompt) - 1 : -1] = objective.token_weight(sequence, counts) * sequence.mask.double()
        rows.append(row)
    weight_T = torch.cat(rows)
    assert fields.kl_weight_T is not None
    fields = replace(fields, rl_weight_T=weight_T, kl_weight_T=objective.beta * weight_T)
    ids = torch.cat([trl_batch["prompt_ids"], trl_batch["completion_ids"]], dim=1)
    seen = torch.cat([trl_batch["prompt_mask"], trl_batch["completion_mask"]], dim=1)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        padded, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, seen, trl_batch["completion_ids"].shape[1]
        )
        parts = []
        for row, sequence in zip(padded, sequences, strict=True):
            before, size = len(sequence.prompt) - 1, len(sequence.response)
            parts += [row.new_zeros(before), row[:size], row.new_zeros(1)]
        return policy_loss(torch.cat(parts), None, fields, spec)

    return _result(trainer.model, run)


def _result(model: Any, run: Callable[[], tuple[Any, dict[str, Tensor]]]) -> Result:
    model.zero_grad()
    loss, metrics = run()
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return Result(float(loss.detach()), gradients, {name: float(value) for name, value in metrics.items()})


def packed_logprobs(model: Any, batch: TokenBatch) -> Tensor:
    """[T] log-probs of the responses' tokens at their predictions, 0 elsewhere."""
    parts = []
    bounds = batch.cu_seqlens.tolist()
    for start, stop, prompt in zip(bounds[:-1], bounds[1:], batch.prompt_N, strict=True):
        tokens = batch.token_T[start:stop].tolist()
        response = logprobs(model, tokens[:prompt], tokens[prompt:])
        parts += [response.new_zeros(prompt - 1), response, response.new_zeros(1)]
    return torch.cat(parts)


def sequences_of(
    rollouts: Rollouts, batch: dict[str, Any], objective: GRPO, masked: list[bool] | None = None
) -> list[Sequence]:
    """TRL's batch as our sequences. `masked` rollouts train nothing, as the engine makes them."""
    made = []
    for index, response in enumerate(rollouts.completions):
        size = len(response)
        mask = rollouts.masks[index].clone()
        if masked is not None and masked[index]:
            mask[:] = False
        row = {name: _row(batch.get(f"{name}_per_token_logps"), index, size) for name in ("old", "ref", "sampling")}
        correction = None
        if objective.correction != "none":
            correction = importance_correction(
                row["old"],
                row["sampling"],
                mask,
                objective.correction,
                objective.correction_min,
                objective.correction_max,
            )
        made.append(
            Sequence(
                prompt=torch.tensor(rollouts.prompts[index]),
                response=torch.tensor(response),
                role="rollout",
                temperature=TEMPERATURE,
                mask=mask,
                advantage=batch["advantages"][index].repeat(size),
                old_logprob=row["old"],
                ref_logprob=row["ref"],
                correction=correction,
            )
        )
    return made


def _row(value: Tensor | None, index: int, size: int) -> Tensor | None:
    return None if value is None else value[index, :size].detach().double()


def check_equal(ours: Result, theirs: Result, factor: float = 1.0, tolerance: float = TOLERANCE) -> None:
    """Loss and gradient of every parameter are TRL's times `factor`; the gradient relative to its largest entry."""
    largest = max(float(gradient.abs().max()) for gradient in theirs.gradients.values())
    assert largest > 0.05, "a gradient that is next to nothing would prove nothing"
    assert abs(ours.loss - factor * theirs.loss) <= tolerance * max(1.0, abs(theirs.loss)), (ours.loss, theirs.loss)
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        error = float((ours.gradients[name] - factor * gradient).abs().max())
        assert error <= tolerance * max(1.0, largest), f"{name}: differs by {error:.1e}, largest entry {largest:.1e}"
