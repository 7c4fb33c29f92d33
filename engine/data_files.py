"""The user's own data as a task: splits, quarantine, and verdicts from reward functions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aapa.engine.console import announce
from aapa.engine.data_prompts import Renderer, RowRules, end_of_turn
from aapa.engine.data_rows import Rows, open_dataset, open_files
from aapa.engine.data_scan import (
    RowExamples,
    Scan,
    explain_columns,
    first_few,
    held_out,
    scan_rows,
    write_quarantine,
)
from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.recipe.discriminator_checks import splits
from aapa.engine.run_output import replace_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aapa.engine.recipe import Recipe, RewardTable
    from aapa.engine.recipe.data_tables import DataTable
    from aapa.engine.rewards import Rewards


FACTS = "data.json"


class FileTask:
    """Examples of the recipe's `data.files` or `data.dataset`.

    The rows stay where they are and are read, rendered and tokenized when a step asks for them.

    Attributes:
        columns: names of the rows' columns, without the prompt's.
        rows, bad: number of rows, and place and reason of those that were set aside.
        rewards: the functions that judge; None where there are none.
        changed_end: whether the tokenizer got another end of sequence.

    Args:
        recipe: with `data.files` or `data.dataset`.
        tokenizer: its end of sequence becomes what the chat template ends answers with, if rows need the template.
        context: the model's, in tokens.
        quarantine: directory where `quarantine.jsonl` goes if there are too many bad rows; None writes nothing.
        quiet: whether nothing is printed.

    Raises:
        UserError: data that cannot be read, too many bad rows, or too few good ones.
    """

    name = "files"

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        *,
        quarantine: Path | None = None,
        quiet: bool = False,
    ) -> None:
        self._tokenizer, self.threshold = tokenizer, recipe.evaluation.pass_at
        self.rewards: Rewards | None = None
        self.rules = _rules(recipe, context)
        self._renderer = Renderer(tokenizer, self.rules)
        data = recipe.data
        sources = [(rows, scan_rows(rows, self._renderer)) for rows in _sources(recipe)]
        self.bad = [line for _, scan in sources for line in scan.bad]
        self.rows = sum(len(rows) for rows, _ in sources)
        self.digest = "/".join(rows.digest for rows, _ in sources)
        _check_bad(sources, self.rules, data.max_bad_fraction, quarantine)
        if self.bad and not quiet:
            announce(f"data: {len(self.bad)} of {self.rows} rows set aside\n{first_few(self.bad)}")
        self.changed_end = False
        self.columns = list(dict.fromkeys(name for _, scan in sources for name in scan.columns))
        self._splits = self._make_splits(sources, data)
        _check_discriminator(recipe, len(self._splits["train"]))
        if any(scan.chat for _, scan in sources):
            self._take_end_of_turn(quiet)

    def _make_splits(self, sources: list[tuple[Rows, Scan]], data: DataTable) -> dict[str, RowExamples]:
        (rows, scan), *others = sources
        fraction = data.held_out
        train, dev, test = held_out(scan, fraction)
        splits = {name: RowExamples(rows, self._renderer, part) for name, part in (("train", train), ("dev", dev))}
        splits["test"] = RowExamples(rows, self._renderer, test)
        if others:
            splits["test"] = RowExamples(others[0][0], self._renderer, np.asarray(others[0][1].good))
            both = np.sort(np.concatenate([dev, test]))
            splits["dev"] = RowExamples(rows, self._renderer, both) if fraction else splits["test"]
        if not len(train):
            field = "data.files" if data.dataset is None else "data.dataset"
            prompts = len(np.unique(np.asarray(scan.key)))
            raise UserError(
                f"{field}: expected more different prompts than are held out to evaluate on (data.held_out = "
                f"{fraction:g} of them, at least 2), got {prompts}; add rows, or give others to evaluate on as "
                "data.evaluation_files, with data.held_out = 0"
            )
        return splits

    def _take_end_of_turn(self, quiet: bool) -> None:
        token = end_of_turn(self._tokenizer, self.rules.template_kwargs)
        if token != self._tokenizer.eos_token:
            if not quiet:
                announce(
                    f"data: responses end with {token!r} as in the chat template, not {self._tokenizer.eos_token!r}"
                )
            self._tokenizer.eos_token = token
            self.changed_end = True

    def examples(self, split: str) -> RowExamples:
        """Return the examples of "train", "dev" or "test"."""
        if split not in self._splits:
            raise UserError(f"split: expected one of {', '.join(self._splits)}, got {split!r}")
        return self._splits[split]

    def corpus(self) -> list[str]:
        """There is none."""
        raise UserError("stages.data: expected 'examples' with data.files or data.dataset, got 'corpus'")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The model's own."""
        return self._tokenizer

    def write_facts(self, directory: Path) -> None:
        """Write down which rows the run uses, for when it goes on, and which were set aside."""
        facts = {"rows": self.rows, "set_aside": len(self.bad), "digest": self.digest}
        replace_file(directory / FACTS, (json.dumps(facts) + "\n").encode())
        path = write_quarantine(directory, self.bad)
        if self.bad:
            announce(f"data: all rows set aside are in {path}")

    def judge(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        finished: Sequence[bool],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, list[float]]:
        """Verdicts of the evaluation's reward functions; nothing where there are none.

        Returns:
            `"reward"`: the weighted sum, NaN where a function failed; `"constraints"`: 1 where it is at least
            `evaluation.pass_at`, else 0.
        """
        if self.rewards is None:
            return {}
        values = self.rewards(examples, list(completions), list(finished), completion_ids)
        return {"reward": values, "constraints": [float(value >= self.threshold) for value in values]}


def uses_files(recipe: Recipe) -> bool:
    """Whether the recipe brings its own data."""
    return bool(recipe.data.files) or recipe.data.dataset is not None


def needs_experts(recipe: Recipe) -> bool:
    """Whether some stage trains on, or is anchored to, expert responses."""
    if recipe.discriminator is not None:
        return True
    return any(
        stage.data == "examples" and any(stage.objective.uses_experts(step) for step in range(stage.steps))
        for stage in recipe.stages
    )


def _rules(recipe: Recipe, context: int) -> RowRules:
    data, response = recipe.data, recipe.rollout.max_new_tokens
    if response >= context:
        raise UserError(f"rollout.max_new_tokens: expected less than the model's context of {context}, got {response}")
    return RowRules(
        prompt_column=data.prompt_column,
        expert_column=data.expert_column,
        needs_experts=needs_experts(recipe),
        wrap_prompts=data.wrap_prompts,
        template_kwargs=data.template_kwargs,
        longest_prompt=context - response,
        longest=context,
    )


def _sources(recipe: Recipe) -> list[Rows]:
    """The rows to train on, and those of the evaluation where it has some of its own."""
    data = recipe.data
    found: list[Rows] = []
    if data.dataset is not None:
        found.append(open_dataset(data.dataset, data.subset, data.split))
        if data.evaluation_split is not None:
            found.append(open_dataset(data.dataset, data.subset, data.evaluation_split))
    else:
        found.append(open_files(_listed(data.files), "data.files"))
    if data.evaluation_files:
        found.append(open_files(_listed(data.evaluation_files), "data.evaluation_files"))
    return found


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _check_bad(sources: list[tuple[Rows, Scan]], rules: RowRules, limit: float, quarantine: Path | None) -> None:
    """Refuse data with too many bad rows, naming the first ones and writing down all, or with none at all."""
    for place, (rows, scan) in enumerate(sources):
        field = "data.evaluation_files" if place else "data"
        if not len(rows):
            raise UserError(f"{field}: expected at least one row, got none")
        if len(scan.bad) <= limit * len(rows) and scan.good:
            continue
        reason = explain_columns(scan, rows, rules)
        if reason is not None:
            raise UserError(reason)
        allowed = math.floor(limit * len(rows))
        more = ""
        if quarantine is not None:
            bad = [line for _, scan in sources for line in scan.bad]
            more = f"\nall are in {write_quarantine(quarantine, bad)}"
        raise UserError(
            f"{field}: expected at most {allowed} bad rows of {len(rows)} (data.max_bad_fraction), "
            f"got {len(scan.bad)}\n{first_few(scan.bad)}{more}"
        )


def _check_discriminator(recipe: Recipe, rows: int) -> None:
    """Refuse a discriminator that would have too few prompts, before the stage that it is fitted after."""
    table = recipe.discriminator
    if table is None or table.fit_after is None:
        return
    if not splits(table, min(table.prompts, rows)):
        raise UserError(
            f"data.files: expected more rows: the discriminator wants 2 prompts to be fitted on and 2 held out "
            f"(discriminator.held_out = {table.held_out:g}), got {rows} to train on"
        )


def judging_rewards(recipe: Recipe) -> tuple[list[RewardTable], str]:
    """The reward functions of evaluations, and the name of their array: those of the last stage that has some."""
    if recipe.evaluation.rewards:
        return recipe.evaluation.rewards, "evaluation.rewards"
    found = [(stage.rewards, f"stages.{index}.rewards") for index, stage in enumerate(recipe.stages) if stage.rewards]
    return found[-1] if found else ([], "evaluation.rewards")


def check_same_rows(task: FileTask, directory: Path) -> None:
    """Refuse rows that are not those a run with checkpoints began with: their order would be another.

    Raises:
        UserError: a row was added, removed or changed.
    """
    path = directory / FACTS
    if not path.is_file() or not (directory / "checkpoints").is_dir():
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        digest, rows = stored["digest"], stored["rows"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        wanted = "what the run wrote of the rows it began with"
        raise UserError(f"data: expected {wanted} in {path}, got {type(error).__name__}: {error}") from None
    if digest != task.digest:
        raise UserError(
            f"data: expected the {rows} rows that the run in {directory} began with, got {task.rows} with "
            "changes; bring the old ones back, or choose another --output"
        )
