"""Responses scored in float64 by a tiny trunk and a head of random weights, shared by processes of every layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tiny
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import CosineDiscriminator, ExpertCache, Origin, SentenceDiscriminator
from aapa.discriminator.base import table_hash
from aapa.discriminator.sentence import SentenceModel
from aapa.engine.data import TokenizedExample
from aapa.engine.examples import Example
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.policy.parallel import Parallel
from aapa.engine.scoring import SentenceScorer
from aapa.sentences import build_sentence_table

EOS, STOP = 1, 2
WORDS = tiny.VOCABULARY - 3
VOCABULARY = {"<pad>": 0, "<eos>": EOS, ".": STOP, **{f" W{i}": 3 + i for i in range(WORDS)}}
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(VOCABULARY, ".")), eos_token="<eos>"),
    vocab_size=tiny.VOCABULARY,
)
# (log-prob features, temperature of the reference's log-probs, layer): every way through the trunk's head.
WAYS: dict[str, tuple[bool, float | None, int]] = {
    "states": (False, None, -1),
    "a layer's output, not normed": (False, None, 2),
    "log-prob features": (True, None, -1),
    "states and the reference's log-probs": (False, 0.7, -1),
    "log-prob features and the reference's log-probs": (True, 1.0, -1),
}


def _sentences(generator: torch.Generator, count: int) -> list[int]:
    ids = []
    for _ in range(count):
        words = int(torch.randint(1, 6, (1,), generator=generator))
        ids += [*torch.randint(3, tiny.VOCABULARY, (words,), generator=generator).tolist(), STOP]
    return ids


def items() -> list[tuple[TokenizedExample, list[int]]]:
    """Four prompts with four responses each; one is empty, one a single token, one cut off within a sentence."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for i in range(4):
        prompt = torch.randint(3, tiny.VOCABULARY, (2 + i,), generator=generator).tolist()
        example = TokenizedExample(Example(i, "p", ("e",), {}), prompt, ((*_sentences(generator, 2 + i % 3), EOS),))
        responses = [[*_sentences(generator, 1 + (i + k) % 4), EOS] for k in range(4)]
        if i == 1:
            responses[1], responses[2], responses[3] = [], [EOS], responses[3][:-2]
        found += [(example, response) for response in responses]
    return found


def scorer(parallel: Parallel, kind: str, way: str, micro_batch_tokens: int) -> SentenceScorer:
    features, _, layer = WAYS[way]
    state = tiny.hf_model(tied=False).state_dict()
    trunk = FrozenModel(tiny.config(False), state, parallel, torch.float64, micro_batch_tokens, layer, features)
    origin = Origin(trunk.hash, layer, table_hash(TABLE))
    torch.manual_seed(4)
    model = SentenceModel(trunk.hidden_size, 16, 8, 1.0, 0.0)
    head = model.head(torch.zeros(trunk.hidden_size), torch.ones(trunk.hidden_size))
    discriminator = (
        SentenceDiscriminator(head, 0.1, 0.7, origin)
        if kind == "sentence"
        else CosineDiscriminator(0.3, 0.0, 0.7, origin)
    )
    return SentenceScorer(discriminator, trunk, TABLE, ExpertCache(trunk, origin, TABLE))


def score(scorer: SentenceScorer, way: str, parts: Sequence[Sequence[int]]) -> dict[int, tuple[Tensor, Tensor | None]]:
    """Calls of the scorer on the items with the numbers of each part; by item, its scores and log-probs."""
    everything = items()
    found = {}
    for part in parts:
        chosen = [everything[number] for number in part]
        scores = scorer.score([e for e, _ in chosen], [r for _, r in chosen], logprob_temperature=WAYS[way][1])
        assert scores.score_S.dtype == torch.float64
        for place, number in enumerate(part):
            logprob = None if scores.logprobs is None else scores.logprobs[place]
            found[number] = (scores.within(place, scores.score_S), logprob)
    return found


def flat(found: dict[int, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """By name, in the order of the items."""
    tensors = {}
    for number, (scores, logprob) in sorted(found.items()):
        tensors[f"{number:02d} scores"] = scores
        if logprob is not None:
            tensors[f"{number:02d} log-probs"] = logprob.double()
    return tensors


def whole() -> list[list[int]]:
    return [list(range(len(items())))]


def every_way(parallel: Parallel, micro_batch_tokens: int = 40) -> dict[str, Tensor]:
    """Scores and log-probs of all items at once, in every way and by both kinds."""
    return {
        f"{kind} / {way} / {name}": value
        for kind, way in itertools.product(("sentence", "cosine"), WAYS)
        for name, value in flat(score(scorer(parallel, kind, way, micro_batch_tokens), way, whole())).items()
    }
