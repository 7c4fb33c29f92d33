"""mini-IF as the engine sees it: splits, corpus, tokenizer and judge."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import all_met, from_column, proxy_met
from aapa.engine.tasks.mini_if.grammar import write_freely, write_other_style
from aapa.engine.tasks.mini_if.language import in_language
from aapa.engine.tasks.mini_if.prompts import DEFAULT_SIZES, sample_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS_GRAMMAR_SHARE: Final = 0.7


class MiniIF:
    """Instructions in IFEval's manner about 24 topics, with two experts per prompt and exact checkers.

    Everything follows from `seed`: each split has a random stream of its own, and the prompts of different
    splits are disjoint for any pair of seeds.

    Args:
        seed: which prompts, experts and corpus are drawn.
        train_size: number of training examples.
        dev_size: number of examples to look at while training.
        test_size: number of examples for the final figures.
        held_out_size: number of examples whose constraint pairs training never shows.
        corpus_size: number of unlabelled texts.
        max_length: the tokenizer's `model_max_length`, in tokens; no prompt with an expert reaches 160.

    Raises:
        UserError: a size is not a positive integer.
    """

    name = "mini-if"

    def __init__(
        self,
        *,
        seed: int = 0,
        train_size: int = DEFAULT_SIZES["train"],
        dev_size: int = DEFAULT_SIZES["dev"],
        test_size: int = DEFAULT_SIZES["test"],
        held_out_size: int = DEFAULT_SIZES["held_out"],
        corpus_size: int = 20_000,
        max_length: int = 256,
    ) -> None:
        self.seed = _integer("seed", seed, minimum=0)
        self.corpus_size = _integer("corpus_size", corpus_size, minimum=1)
        self.max_length = _integer("max_length", max_length, minimum=1)
        sizes = {"train": train_size, "dev": dev_size, "test": test_size, "held_out": held_out_size}
        self.sizes = {split: _integer(f"{split}_size", size, minimum=1) for split, size in sizes.items()}
        self._examples: dict[str, list[Example]] = {}
        self._corpus: list[str] | None = None

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `"train"`, `"dev"`, `"test"` or `"held_out"`, each with two experts.

        Raises:
            UserError: there is no such split, or it has fewer different prompts than its size.
        """
        if split not in self.sizes:
            raise UserError(f"split: expected one of {', '.join(self.sizes)}, got {split!r}")
        if split not in self._examples:
            self._examples[split] = sample_split(split, self.sizes[split], self.seed)
        return list(self._examples[split])

    def corpus(self) -> list[str]:
        """Return unlabelled texts, 70 % in the experts' language, none an expert of an evaluation split."""
        if self._corpus is None:
            splits = ("dev", "test", "held_out")
            hidden = {text for split in splits for example in self.examples(split) for text in example.experts}
            rng = Random(f"{self.name}/{self.seed}/corpus")
            texts: list[str] = []
            while len(texts) < self.corpus_size:
                grammar = rng.random() < CORPUS_GRAMMAR_SHARE
                text = write_freely(rng) if grammar else write_other_style(rng)
                if text not in hidden:
                    texts.append(text)
            self._corpus = texts
        return list(self._corpus)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Train the tokenizer, the same for every seed and size."""
        # transformers loads torch, which reward workers and `--check` can do without.
        from aapa.engine.tasks.mini_if.tokenizer import build_tokenizer

        return build_tokenizer(self.max_length)

    def judge(
        self, examples: Sequence[Example], completions: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, list[float]]:
        """Judge completions exactly.

        Args:
            examples: the example of each completion, of any split.
            completions: decoded responses without the end-of-sequence token.
            finished: whether each response ended by itself rather than at the length limit.

        Returns:
            0 or 1 per completion: `"constraints"` (finished, and every constraint met), `"in_language"` (the
            grammar can write the text about the topic) and `"proxy"` (every gameable checker passed).
        """
        verdicts: dict[str, list[float]] = {"constraints": [], "in_language": [], "proxy": []}
        for example, text, ended in zip(examples, completions, finished, strict=True):
            constraints = [from_column(column) for column in example.columns["constraints"]]
            verdicts["constraints"].append(float(all_met(text, constraints, finished=ended)))
            verdicts["in_language"].append(float(in_language(text, example.columns["topic"])))
            verdicts["proxy"].append(float(proxy_met(text, constraints)))
        return verdicts


def _integer(field: str, value: object, *, minimum: int) -> int:
    # bool is an int to Python, but `train_size = true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{field}: expected an integer of at least {minimum}, got {value!r}")
    return value
