"""What a task hands to the engine: examples with expert responses, a corpus, a tokenizer and a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Example:
    """One prompt with its expert responses; the first is the reference."""

    id: int
    """Stable and unique inside a split."""
    prompt: str
    experts: tuple[str, ...]
    columns: Mapping[str, Any]
    """Passed to reward functions, one list per column."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A conversation that `prompt` was rendered from; reward functions get it in place of the text."""
    row_prompt: str | None = None
    """The text that `prompt` was made from, where the two differ; reward functions get it."""


class Task(Protocol):
    """A source of examples which knows how its responses are judged."""

    name: str

    def examples(self, split: str) -> Sequence[Example]:
        """Return the examples of `"train"`, `"dev"`, `"test"` or `"held_out"`."""

    def corpus(self) -> list[str]:
        """Return unlabelled text for the language-modelling stage."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer, with a padding and an end-of-sequence token."""

    def judge(
        self, examples: Sequence[Example], completions: Sequence[str], finished: Sequence[bool]
    ) -> dict[str, list[float]]:
        """Return 0/1 verdicts per completion under `"constraints"`, `"in_language"` and `"proxy"`."""
