"""Examples as tokens, and the order in which they are drawn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np

from aapa.engine.errors import UserError
from aapa.engine.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TokenizedExample:
    """An example with its token ids; expert responses end with the end-of-sequence token.

    Attributes:
        example: the text it was made from.
        prompt: token ids, at least one.
        experts: token ids of each expert response.
    """

    example: Example
    prompt: list[int]
    experts: tuple[list[int], ...]


def tokenized(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, max_length: int, split: str
) -> Sequence[TokenizedExample]:
    """Token ids of examples: all at once of a list, and else of each when it is asked for."""
    if isinstance(examples, list):
        return tokenize(examples, tokenizer, max_length, split)
    return TokenizedRows(examples, tokenizer, max_length, split)


class TokenizedRows(Sequence[TokenizedExample]):
    """Examples of files, tokenized when a step asks for them; the last ones asked for are kept."""

    KEPT = 2048

    def __init__(
        self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, max_length: int, split: str
    ) -> None:
        self.examples, self.tokenizer, self.max_length, self.split = examples, tokenizer, max_length, split
        self._kept: OrderedDict[int, TokenizedExample] = OrderedDict()

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> TokenizedRows: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | TokenizedRows:
        if isinstance(index, slice):
            return TokenizedRows(self.examples[index], self.tokenizer, self.max_length, self.split)
        if index not in self._kept:
            example = self.examples[index]
            (self._kept[index],) = tokenize(
                [example], self.tokenizer, self.max_length, self.split, needs_experts=bool(example.experts)
            )
            if len(self._kept) > self.KEPT:
                self._kept.popitem(last=False)
        return self._kept[index]


def tokenize(
    examples: list[Example],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    split: str,
    needs_experts: bool = True,
) -> list[TokenizedExample]:
    """Token ids of examples.

    Raises:
        UserError: an empty prompt, an example without an expert, or one longer than the model's context, by its id.
    """
    if not examples:
        return []
    seen: set[int] = set()
    for example in examples:
        if not isinstance(example.id, int) or example.id in seen:
            raise UserError(f"data.{split}: expected examples with an integer id each of its own, got {example.id!r}")
        seen.add(example.id)
    prompts = tokenizer([e.prompt for e in examples], add_special_tokens=False)["input_ids"]
    texts = [text for e in examples for text in e.experts]
    experts = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    eos = tokenizer.eos_token_id
    tokenized = []
    for example, prompt in zip(examples, prompts, strict=True):
        responses = tuple([*next(experts), eos] for _ in example.experts)
        place = f"data.{split}[{example.id}]"
        if not prompt:
            raise UserError(f"{place}.prompt: expected at least one token, got {example.prompt!r}")
        if not responses and needs_experts:
            raise UserError(f"{place}.experts: expected at least one response, got none")
        longest = len(prompt) + max(map(len, responses), default=0)
        if longest > max_length:
            raise UserError(f"{place}: expected at most {max_length} tokens with its expert, got {longest}")
        tokenized.append(TokenizedExample(example, prompt, responses))
    return tokenized


def tokenize_corpus(texts: list[str], tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[TokenizedExample]:
    """Unlabelled texts as responses to a prompt of one end-of-sequence token, which stands for "a text begins"."""
    eos = tokenizer.eos_token_id
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        TokenizedExample(Example(i, "", (text,), {}), [eos], ([*tokens[: max_length - 2], eos],))
        for i, (text, tokens) in enumerate(zip(texts, ids, strict=True))
    ]


class Sampler:
    """Draws without replacement, epoch by epoch; what step k sees depends on (seed, k) alone, so nothing is saved."""

    def __init__(self, size: int, seed: int, name: str) -> None:
        if size < 1:
            raise UserError(f"data: expected at least one {name} example, got none")
        self.size = size
        self._entropy = [seed, *name.encode()]
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def batch(self, step: int, count: int) -> list[int]:
        """Indices of the step's examples; a batch may run over the end of an epoch."""
        return [self._at(step * count + offset) for offset in range(count)]

    def epochs(self, step: int, count: int) -> list[int]:
        """How often each of the step's examples was drawn before."""
        return [(step * count + offset) // self.size for offset in range(count)]

    def _at(self, draw: int) -> int:
        epoch, place = divmod(draw, self.size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self._entropy, epoch]).permutation(self.size)
        return int(self._order[place])
