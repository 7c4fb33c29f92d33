"""mini-IF as the engine sees it: splits, corpus, tokenizer and judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.constraints import all_met, from_column, proxy_met
from aapa.engine.tasks.mini_if.grammar import write_other_style
from aapa.engine.tasks.mini_if.language import in_language
from aapa.engine.tasks.mini_if.lexicon import LEXICONS
from aapa.engine.tasks.mini_if.noise import KINDS, MIXED, add_noise
from aapa.engine.tasks.mini_if.prompts import DEFAULT_SIZES, sample_split
from aapa.engine.tasks.mini_if.variants import DIFFICULTIES, Variant
from aapa.engine.tasks.options import choice, integer, share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS_GRAMMAR_SHARE: Final = 0.7
TOKENIZERS: Final = ("own", "both")


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
        held_out_types_size: number of examples with a constraint type that training never shows; none if easy.
        corpus_size: number of unlabelled texts.
        max_length: the tokenizer's `model_max_length`, in tokens; no prompt with an expert reaches 160, or 256
            where there is another difficulty, tokenizer or noise.
        difficulty: `"easy"`: eight types of constraints, one to three at a time; `"medium"`: sixteen types;
            `"hard"`: sixteen types, two to four at a time.
        style: `"plain"`, or `"formal"`: other topics, another vocabulary and other sentences.
        tokenizer: `"own"`, made for this style and difficulty, or `"both"`, one for all of them.
        expert_noise: share of the training examples whose experts are wrong; evaluation has none.
        noise_kind: what is wrong: `"constraint"` (one is violated), `"topic"` (another), `"style"` (the other
            one's sentences), or `"mixed"`.

    Raises:
        UserError: an option is not one of these.
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
        held_out_types_size: int = DEFAULT_SIZES["held_out_types"],
        corpus_size: int = 20_000,
        max_length: int = 256,
        difficulty: str = "easy",
        style: str = "plain",
        tokenizer: str = "own",
        expert_noise: float = 0.0,
        noise_kind: str = MIXED,
    ) -> None:
        self.seed = integer("seed", seed, minimum=0)
        self.corpus_size = integer("corpus_size", corpus_size, minimum=1)
        self.max_length = integer("max_length", max_length, minimum=1)
        sizes = {"train": train_size, "dev": dev_size, "test": test_size, "held_out": held_out_size}
        sizes["held_out_types"] = held_out_types_size
        self.sizes = {split: integer(f"{split}_size", size, minimum=1) for split, size in sizes.items()}
        self.variant = Variant(
            LEXICONS[choice("style", style, LEXICONS)], DIFFICULTIES[choice("difficulty", difficulty, DIFFICULTIES)]
        )
        if not self.variant.difficulty.layouts:
            del self.sizes["held_out_types"]
        self.tokenizer_kind = choice("tokenizer", tokenizer, TOKENIZERS)
        self.expert_noise = share("expert_noise", expert_noise)
        self.noise_kind = choice("noise_kind", noise_kind, (*KINDS, MIXED))
        self._examples: dict[str, list[Example]] = {}
        self._corpus: list[str] | None = None

    def examples(self, split: str) -> list[Example]:
        """Return the examples of a split, each with two experts.

        The splits are `"train"`, `"dev"`, `"test"`, `"held_out"` and, unless the difficulty is easy,
        `"held_out_types"`.

        Raises:
            UserError: there is no such split, or it has fewer different prompts than its size.
        """
        if split == "held_out_types" and split not in self.sizes:
            raise UserError("difficulty: expected 'medium' or 'hard' for the split 'held_out_types', got 'easy'")
        if split not in self.sizes:
            raise UserError(f"split: expected one of {', '.join(self.sizes)}, got {split!r}")
        if split not in self._examples:
            examples = sample_split(split, self.sizes[split], self.seed, self.variant)
            if split == "train" and self.expert_noise > 0:
                examples = add_noise(examples, self.expert_noise, self.noise_kind, self.seed, self.variant)
            self._examples[split] = examples
        return list(self._examples[split])

    def corpus(self) -> list[str]:
        """Return unlabelled texts, 70 % in the experts' language, none an expert of an evaluation split.

        None has the layout of a constraint type that training never shows.
        """
        if self._corpus is None:
            splits = [split for split in self.sizes if split != "train"]
            hidden = {text for split in splits for example in self.examples(split) for text in example.experts}
            rng = self.variant.stream(f"{self.seed}/corpus")
            texts: list[str] = []
            while len(texts) < self.corpus_size:
                grammar = rng.random() < CORPUS_GRAMMAR_SHARE
                text = self.variant.write_freely(rng) if grammar else write_other_style(rng, self.variant.lexicon)
                if text not in hidden:
                    texts.append(text)
            self._corpus = texts
        return list(self._corpus)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Train the tokenizer, the same for every seed and size."""
        # transformers loads torch, which reward workers and `--check` can do without.
        from aapa.engine.tasks.mini_if.tokenizer import build_shared_tokenizer, build_tokenizer

        if self.tokenizer_kind == "both":
            return build_shared_tokenizer(self.max_length)
        return build_tokenizer(self.variant, self.max_length)

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
            verdicts["in_language"].append(float(in_language(text, example.columns["topic"], self.variant.difficulty)))
            verdicts["proxy"].append(float(proxy_met(text, constraints)))
        return verdicts
