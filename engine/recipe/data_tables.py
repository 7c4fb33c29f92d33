"""The tables of a recipe that say where rows come from and what rewards responses."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from aapa.engine.recipe.fields import CHANGEABLE, BelowOne, Count, Fraction, Table, Text
from aapa.engine.recipe.problems import suggestion
from aapa.engine.tasks import TASKS

# A C long of bytes holds more, and poll(2) more milliseconds than these.
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Gigabytes = Annotated[float, Field(gt=0, le=1e6)]


def _reward(value: str) -> str:
    if re.fullmatch(r"([^:\s]+|[^:]+\.py):[^:\s]+", value):
        return value
    raise ValueError(f"expected 'package.module:name' or 'file.py:name', got {value!r}")


def _task(value: str) -> str:
    if value in TASKS or re.fullmatch(r"[^:\s]+:[^:\s]+", value):
        return value
    raise ValueError(f"expected {suggestion(value, TASKS)}, or 'package.module:Class', got {value!r}")


class DataTable(Table):
    """Prompts, expert responses and the truth they are judged by."""

    task: Annotated[str, AfterValidator(_task)] = "mini-if"
    """"mini-if", "reasoning", or a task class of one's own as "package.module:Class"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the task class."""
    files: Text | list[Text] = Field(default_factory=list, json_schema_extra=CHANGEABLE)
    """Rows of one's own instead of a task: JSON lines or Parquet, patterns too; seen from the recipe's folder."""
    dataset: Text | None = None
    """Instead of files: a directory written by datasets' save_to_disk, or a name on the Hugging Face hub."""
    subset: Text | None = None
    """Configuration of the hub's dataset, where it has several."""
    split: Text = "train"
    """Split of the dataset that is trained on."""
    evaluation_files: Text | list[Text] = Field(default_factory=list, json_schema_extra=CHANGEABLE)
    """Rows of the split "test"; if not given, half of the held-out ones."""
    evaluation_split: Text | None = None
    """Split of the dataset with the rows of the split "test"."""
    held_out: BelowOne = 0.02
    """Fraction of the prompts that is not trained on: the split "dev", and half of it "test" if that has no rows."""
    prompt_column: Text = "prompt"
    """Column of the prompts: texts, or lists of messages."""
    expert_column: Text = "expert"
    """Column of the expert responses: a text or a list of texts; not needed where no stage uses experts."""
    draw_experts: bool | None = None
    """Whether each epoch trains on a drawn one of a prompt's experts, not the first; if not given, with own rows."""
    wrap_prompts: bool = False
    """Whether prompts that are texts go through the chat template, too, as one message of the user."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords for the chat template, such as { enable_thinking = false }."""
    max_bad_fraction: Fraction = Field(0.01, json_schema_extra=CHANGEABLE)
    """Rows that cannot be used are set aside; a larger share of them ends the run."""

    @property
    def draws_experts(self) -> bool:
        """Whether each epoch draws one of a prompt's experts."""
        if self.draw_experts is not None:
            return self.draw_experts
        return bool(self.files) or self.dataset is not None


class RewardTable(Table):
    """A reward function and its share."""

    function: Annotated[str, AfterValidator(_reward)]
    """"package.module:name" or "file.py:name" of f(prompts, completions, **columns) -> list of numbers or None."""
    weight: float = 1.0
    """Factor in the sum of all rewards."""


class RewardsTable(Table):
    """How reward functions run: one's own in a process each, those of the package in the trainer's."""

    timeout: Seconds = Field(60.0, json_schema_extra=CHANGEABLE)
    """Seconds a call may take; the process is then killed and started anew."""
    memory_gb: Gigabytes | None = Field(None, json_schema_extra=CHANGEABLE)
    """Address space of each process; if not given, what the machine has."""
    max_failed_fraction: Fraction = Field(0.05, json_schema_extra=CHANGEABLE)
    """Samples without a reward are masked; a larger share of them in a window ends the run."""
    window: Count = Field(200, json_schema_extra=CHANGEABLE)
    """Samples in the window."""
