"""The reasoning task as the engine sees it: splits, corpus, tokenizer and judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.tasks.mini_if.draws import below, pick
from aapa.engine.tasks.options import choice, integer
from aapa.engine.tasks.reasoning.answers import is_mentioned, is_right
from aapa.engine.tasks.reasoning.problems import DEFAULT_SIZES, SOURCES, Problem, package, problems
from aapa.engine.tasks.reasoning.solutions import is_solution, write_solution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS_SOLUTION_SHARE: Final = 0.7
# Draws in a row without a new problem after which a split counts as exhausted.
_PATIENCE: Final = 20_000


class Reasoning:
    """Arithmetic of reasoning-gym with two worked solutions per problem and the package's own scoring.

    Everything follows from `seed` and the version of the package: each split has a random stream of its own, and the
    problems of different splits are disjoint for any pair of seeds, whatever order their numbers come in.

    Args:
        seed: which problems, experts and corpus are drawn.
        train_size: number of training examples.
        dev_size: number of examples to look at while training.
        test_size: number of examples for the final figures.
        held_out_size: number of examples with larger numbers than training ever shows.
        corpus_size: number of unlabelled texts.
        max_length: the tokenizer's `model_max_length`, in tokens; no prompt with an expert reaches 256.
        datasets: names of the package's datasets, drawn equally often; a problem that comes up again is left out, so
            the smaller ones run dry first.

    Raises:
        UserError: an option is not one of these, or reasoning-gym is not installed.
    """

    name = "reasoning"

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
        datasets: Sequence[str] = tuple(SOURCES),
    ) -> None:
        self.seed = integer("seed", seed, minimum=0)
        self.corpus_size = integer("corpus_size", corpus_size, minimum=1)
        self.max_length = integer("max_length", max_length, minimum=1)
        sizes = {"train": train_size, "dev": dev_size, "test": test_size, "held_out": held_out_size}
        self.sizes = {split: integer(f"{split}_size", size, minimum=1) for split, size in sizes.items()}
        names = datasets if isinstance(datasets, list | tuple) else []
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise UserError(f"datasets: expected a list of different names, got {datasets!r}")
        self.datasets = tuple(choice("datasets", name, SOURCES) for name in datasets)
        self._examples: dict[str, list[Example]] = {}
        self._corpus: list[str] | None = None
        package()

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `"train"`, `"dev"`, `"test"` or `"held_out"`, each with two experts.

        Raises:
            UserError: there is no such split, or it has fewer different problems than its size.
        """
        if split not in self.sizes:
            raise UserError(f"split: expected one of {', '.join(self.sizes)}, got {split!r}")
        if split not in self._examples:
            self._examples[split] = self._draw(split, self.sizes[split])
        return list(self._examples[split])

    def corpus(self) -> list[str]:
        """Return unlabelled texts: 70 % solutions of problems of the train split, the rest lines of arithmetic."""
        if self._corpus is None:
            rng = Random(f"reasoning/{self.seed}/corpus")
            drawn = self._problems("corpus", rng, "train")
            self._corpus = [
                write_solution(next(drawn), rng) if rng.random() < CORPUS_SOLUTION_SHARE else _write_facts(rng)
                for _ in range(self.corpus_size)
            ]
        return list(self._corpus)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Train the tokenizer, the same for all options."""
        # transformers loads torch, which reward workers and `--check` can do without.
        from aapa.engine.tasks.reasoning.tokenizer import build_tokenizer

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
            0 or 1 per completion: `"constraints"` (finished, and the answer right), `"in_language"` (an expert could
            have written it for this problem, so every step is right) and `"proxy"` (the right number is mentioned).
        """
        verdicts: dict[str, list[float]] = {"constraints": [], "in_language": [], "proxy": []}
        for example, text, ended in zip(examples, completions, finished, strict=True):
            columns = example.columns
            problem = Problem(columns["dataset"], "", columns["given"], columns["answer"])
            verdicts["constraints"].append(float(ended and is_right(text, problem.dataset, problem.answer)))
            verdicts["in_language"].append(float(is_solution(text, problem)))
            verdicts["proxy"].append(float(is_mentioned(text, problem.answer)))
        return verdicts

    def _draw(self, split: str, size: int) -> list[Example]:
        """Draw `size` examples with different prompts; the first n do not depend on `size` or on other splits."""
        rng = Random(f"reasoning/{self.seed}/{split}")
        examples: list[Example] = []
        seen: set[str] = set()
        misses = 0
        for problem in self._problems(split, rng, split):
            misses += 1
            if misses > _PATIENCE:
                raise UserError(f"{split}_size: expected at most about {len(examples)} (all its problems), got {size}")
            if problem.prompt in seen:
                continue
            misses = 0
            seen.add(problem.prompt)
            columns = {"dataset": problem.dataset, "given": problem.given, "answer": problem.answer}
            examples.append(Example(len(examples), problem.prompt, _experts(problem, rng), columns))
            if len(examples) == size:
                break
        return examples

    def _problems(self, stream: str, rng: Random, split: str) -> Iterator[Problem]:
        """Draw problems of `split` from all datasets without end."""
        name, larger = f"reasoning/{self.seed}/{stream}", split == "held_out"
        sources = [problems(dataset, name, larger=larger) for dataset in self.datasets]
        while True:
            drawn = pick(rng, sources)
            yield next(problem for problem in drawn if problem.split == split)


def _experts(problem: Problem, rng: Random) -> tuple[str, str]:
    """Write two different solutions independently of each other and from the same distribution."""
    first = write_solution(problem, rng)
    while True:
        second = write_solution(problem, rng)
        if second != first:
            return first, second


def _write_facts(rng: Random) -> str:
    """Write some lines of arithmetic that lead nowhere: the experts' vocabulary, but no solution."""
    lines = []
    for _ in range(3 + below(rng, 4)):
        form, a, b = below(rng, 4), below(rng, 70) - 30, below(rng, 10)
        if form == 0:
            lines.append(f"{a} + {b} = {a + b}.")
        elif form == 1:
            lines.append(f"{a} - {b} = {a - b}.")
        elif form == 2:
            lines.append(f"{a} * {b} = {a * b}.")
        else:
            a, b = 1 + below(rng, 60), 1 + below(rng, 30)
            lines.append(f"{a} = {a // b} * {b} + {a % b}.")
    return "\n".join(lines)
