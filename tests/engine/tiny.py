"""The tiny model and batch that the engine's tests share; also imported by the scripts that torchrun starts."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from aapa import CHORD, GRPO, SFT, Anchor, Objective, Schedule
from aapa.batch import Sequence

# 67 is not divisible by 2: the vocabulary is padded under tensor parallelism.
VOCABULARY = 67


def config(tied: bool = True, layers: int = 2) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def hf_model(tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0, layers: int = 2):
    """Norm weights are shaken, so that a wrong mapping of them shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(tied, layers), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def objective(**changes) -> GRPO:
    """Every component at once: surrogate, KL and anchor."""
    return GRPO(**({"beta": 0.05, "clip_high": 0.28, "group_size": 4, "anchor": Anchor(weight=0.7)} | changes))


def rollouts(count: int = 8, seed: int = 1) -> list[Sequence]:
    """Ragged rollouts with old log-probs away from the policy's, so that ratios are not 1 and some are clipped."""
    g = torch.Generator().manual_seed(seed)

    def normal(size: int) -> torch.Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64)

    sequences = []
    for index in range(count):
        length = int(torch.randint(1, 14, (1,), generator=g))
        logprob = -4 - 0.5 * normal(length)
        sequences.append(
            Sequence(
                prompt=torch.randint(2, VOCABULARY, (2 + index % 5,), generator=g),
                response=torch.randint(1, VOCABULARY, (length,), generator=g),
                role="rollout",
                temperature=0.8,
                mask=torch.zeros(length, dtype=torch.bool) if index == 5 else None,
                advantage=normal(length),
                anchor_advantage=normal(length),
                old_logprob=logprob,
                ref_logprob=logprob + 0.2 * normal(length),
                anchored=index != 3,
            )
        )
    return sequences


def experts(count: int = 4, seed: int = 2) -> list[Sequence]:
    """Ragged expert responses."""
    g = torch.Generator().manual_seed(seed)

    def tokens(size: int) -> torch.Tensor:
        return torch.randint(2, VOCABULARY, (size,), generator=g)

    return [Sequence(tokens(2 + i % 3), tokens(3 + 2 * i), role="expert") for i in range(count)]


def objectives() -> dict[str, Objective]:
    """One objective for every way through the loss; all with ratios that are not 1, and clipping."""
    anchor = Anchor(weight=0.7)
    mu = Schedule("cosine", start=0.9, end=0.05, steps=40, warmup=5)
    sequence = {"ratio_level": "sequence", "clip_low": 0.05, "clip_high": 0.05}
    return {
        "sft": SFT(),
        "a-sft": SFT(anchor=anchor),
        "grpo": GRPO(clip_high=0.28, delta=1.6),
        "grpo-kl": GRPO(beta=0.05, aggregation="grpo"),
        "a-grpo": GRPO(beta=0.05, kl="k2", clip_high=0.28, anchor=anchor),
        "dr-grpo": GRPO(aggregation="dr_grpo", max_response_length=16, scale="none"),
        "cispo": GRPO(surrogate="cispo", clip_low=1.0, clip_high=0.1, anchor=anchor),
        "gspo": GRPO(**sequence, aggregation="grpo", beta=0.05, anchor=anchor),
        "chord-mu": CHORD(mu=mu, phi=False),
        "a-chord-phi": CHORD(mu=0.1, phi=True, anchor=anchor),
    }
