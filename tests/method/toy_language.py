"""A synthetic language whose sentences have a role, a topic and a style, and a trunk that reads it."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import FitMaterial
from aapa.sentences import build_sentence_table

WORDS, HIDDEN, ROLES = 60, 24, 3
VOCABULARY = {
    "<eos>": 0,
    ".": 1,
    **{f" w{i}": 2 + i for i in range(WORDS)},
    **{f" W{i}": 2 + WORDS + i for i in range(WORDS)},
}
TEXTS = {index: text for text, index in VOCABULARY.items()}
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(VOCABULARY, ".")), eos_token="<eos>")
)


def encode(text: str) -> list[int]:
    return [VOCABULARY[piece if piece == "." else f" {piece}"] for piece in re.findall(r"\w+|\.", text)]


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[i] for i in ids)


class ToyTrunk:
    """Hidden state of a token: its embedding, and `memory` times the mean of the embeddings up to it."""

    hidden_size = HIDDEN
    hash = "toy"

    def __init__(self, memory: float = 0.5) -> None:
        self.memory = memory
        self.embedding_VD = torch.randn(len(VOCABULARY), HIDDEN, generator=torch.Generator().manual_seed(0))

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        states = [torch.zeros(0, HIDDEN)]
        for prompt, response, cu in zip(prompts, responses, cu_sents, strict=True):
            token_TD = self.embedding_VD[prompt + response]
            past_TD = token_TD.cumsum(0) / torch.arange(1, len(token_TD) + 1)[:, None]
            hidden_TD = (token_TD + self.memory * past_TD)[len(prompt) :]
            states += [hidden_TD[a:b].mean(0, keepdim=True) for a, b in pairwise(cu)]
        return torch.cat(states)


def response(rng: random.Random, topic: int, style: int) -> list[int]:
    """Three sentences, each with words of its role, of the prompt's topic and of a style."""
    ids = []
    for role in range(ROLES):
        words = [f"w{40 + 5 * role + i}" for i in rng.sample(range(5), 3)] + [f"w{20 + topic}"]
        words += [f"w{10 * style + rng.randrange(10)}" for _ in range(rng.randint(1, 3))]
        ids += encode(" ".join(rng.sample(words, len(words))) + ".")
    return [*ids, 0]


def make_material(
    prompts: int,
    expert_style: int = 0,
    rollout_style: int = 1,
    experts: int = 2,
    rollouts: int = 3,
    seed: int = 0,
) -> list[FitMaterial]:
    rng = random.Random(seed)
    material = []
    for prompt in range(prompts):
        topic = prompt % 20
        material.append(
            FitMaterial(
                [22 + topic],
                [response(rng, topic, expert_style) for _ in range(experts)],
                [response(rng, topic, rollout_style) for _ in range(rollouts)],
            )
        )
    return material
