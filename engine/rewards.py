"""The weighted sum of reward functions in TRL's signature; samples that a function fails on are masked."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from aapa.engine.console import announce
from aapa.engine.errors import TrainingFault, UserError
from aapa.engine.examples import Example
from aapa.engine.reward_process import EXTRAS, Bounds, CallFailed, RewardProcess, check_parameters
from aapa.engine.reward_worker import answer_call, load, magnitude_problem, parameters, reason

if TYPE_CHECKING:
    from aapa.engine.recipe import RewardTable

# What every call has besides the examples' columns.
OWN_NAMES = ("prompts", "completions", "completion_ids", "finished")
# A batch that took too long is tried again sample by sample; after so many that hang, the others count as failed, too.
MOST_TIMEOUTS = 3
REPORTS = 5

Values = tuple[list[float | str | None], list[tuple[str, float]]]


class RewardRunner(Protocol):
    """Calls one reward function: `begin` hands over, `finish` waits, so that several run at the same time."""

    path: str

    def check_parameters(self, names: Sequence[str]) -> None: ...
    def begin(self, keywords: Mapping[str, Any], state: Mapping[str, Any]) -> None: ...
    def finish(self, count: int) -> Values: ...
    def close(self) -> int | None: ...


class LocalReward:
    """A function of the package, called in this process."""

    def __init__(self, path: str, function: Callable[..., Any], field: str) -> None:
        self.path, self.function, self.field = path, function, field
        self._call: dict[str, Any] = {}

    def check_parameters(self, names: Sequence[str]) -> None:
        check_parameters(parameters(self.function), [*names, *EXTRAS], self.path, self.field)

    def begin(self, keywords: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        known = parameters(self.function)
        passed = {name: value for name, value in keywords.items() if known["anything"] or name in known["accepted"]}
        extras = [name for name in EXTRAS if name in known["accepted"]]
        self._call = {"keywords": passed, "state": dict(state), "extras": extras}

    def finish(self, count: int) -> Values:
        answer = answer_call(self.function, self._call)
        if "error" in answer:
            raise CallFailed(answer["error"])
        if "shape" in answer or len(answer["values"]) != count:
            got = answer.get("shape") or len(answer["values"])
            raise UserError(f"{self.field}: expected a list of {count} numbers from {self.path}, got {got}")
        return answer["values"], answer["logged"]

    def close(self) -> None:
        """Nothing is held."""


class RewardPool:
    """The run's reward functions, each loaded once, whichever stages and evaluations use it."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._runners: dict[str, RewardRunner] = {}

    def open(self, tables: Sequence[RewardTable], field: str, columns: Sequence[str] | None = None) -> Rewards:
        """The weighted sum that a recipe's array of rewards stands for.

        Args:
            field: the array's name, for messages.
            columns: names of the examples' columns, if they are known.

        Raises:
            UserError: a function that cannot be loaded, or that asks for what there is not.
        """
        opened = []
        for number, table in enumerate(tables):
            runner = self.load(table.function, f"{field}.{number}.function")
            if columns is not None:
                _check_names(columns)
                runner.check_parameters([*OWN_NAMES, *columns])
            opened.append((runner, table.weight))
        return Rewards(tuple(opened))

    def close(self) -> None:
        """End all processes."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    def load(self, path: str, field: str) -> RewardRunner:
        """One function by its name.

        Raises:
            UserError: naming the recipe's field, when it cannot be loaded.
        """
        if path not in self._runners:
            if in_package(path):
                self._runners[path] = LocalReward(path, load_function(path, field), field)
            else:
                self._runners[path] = RewardProcess(path, field, self.bounds)
        return self._runners[path]


def in_package(path: str) -> bool:
    """Whether a reward function is the package's own, and so runs in the trainer's process."""
    return path.startswith("aapa.")


def load_function(path: str, field: str) -> Callable[..., Any]:
    """The callable at `package.module:name`.

    Raises:
        UserError: naming the recipe's field, when there is no such module or callable.
    """
    try:
        return load(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{field}: {reason(error, path)}") from None


def _check_names(columns: Sequence[str]) -> None:
    taken = sorted(set(columns) & {*OWN_NAMES, *EXTRAS})
    if taken:
        raise UserError(
            f"data: expected columns of other names than the engine's own {', '.join((*OWN_NAMES, *EXTRAS))} "
            f"where rewards are used, got {', '.join(taken)}"
        )


@dataclass
class Rewards:
    """The weighted sum of reward functions.

    Attributes:
        functions: (runner, weight).
        logged: what functions gave to `log_metric` since it was last taken.
        last_failure: of a sample, with the function's name.
    """

    functions: tuple[tuple[RewardRunner, float], ...]
    logged: list[tuple[str, float]] = field(default_factory=list)
    last_failure: str = ""
    _reports: int = 0

    def __call__(
        self,
        examples: Sequence[Example],
        completions: list[str],
        finished: list[bool],
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
        steps: int = 0,
    ) -> list[float]:
        """Reward of each completion: the sum over the functions that score it.

        A function scores None where it does not apply. NaN, which masks the sample, stands where no function applies,
        and where one of them fails: it raises, takes too long, ends its process, or returns something that is no
        number within float32; or the sum is none. A batch that fails as a whole is tried again sample by sample.
        """
        keywords = call_keywords(examples, completions, finished, completion_ids)
        state = {"global_step": step, "max_steps": steps}
        for runner, _ in self.functions:
            runner.begin(keywords, state)
        totals: list[float | None] = [None] * len(completions)
        failed: set[int] = set()
        for runner, weight in self.functions:
            for index, value in enumerate(self._values(runner, keywords, state, len(completions))):
                if isinstance(value, str):
                    failed.add(index)
                    self._report(runner.path, value)
                elif value is not None:
                    totals[index] = weight * value + (totals[index] or 0.0)
        for index, total in enumerate(totals):
            if index not in failed and total is not None and (problem := magnitude_problem(total)):
                failed.add(index)
                self._report("the weighted sum", problem)
        return [math.nan if total is None or index in failed else total for index, total in enumerate(totals)]

    def take_logged(self) -> list[tuple[str, float]]:
        """What functions logged since the last call."""
        logged, self.logged = self.logged, []
        return logged

    def _values(
        self, runner: RewardRunner, keywords: Mapping[str, Any], state: Mapping[str, Any], count: int
    ) -> list[float | str | None]:
        try:
            values, logged = runner.finish(count)
        except CallFailed as error:
            if count == 1:
                return [str(error)]
        else:
            self.logged += logged
            return values
        values, timeouts = [], 0
        for index in range(count):
            if timeouts == MOST_TIMEOUTS:
                values += [f"not tried again after {MOST_TIMEOUTS} samples that took too long"] * (count - index)
                break
            runner.begin({name: column[index : index + 1] for name, column in keywords.items()}, state)
            try:
                found, logged = runner.finish(1)
                values += found
                self.logged += logged
            except CallFailed as error:
                values.append(str(error))
                timeouts += error.timed_out
        return values

    def _report(self, source: str, text: str) -> None:
        self.last_failure = f"{source}: {text}"
        self._reports += 1
        if self._reports <= REPORTS:
            last = "; further ones are counted only" if self._reports == REPORTS else ""
            announce(f"reward failed, sample masked: {self.last_failure}{last}")


def call_keywords(
    examples: Sequence[Example],
    completions: Sequence[str],
    finished: Sequence[bool],
    completion_ids: Sequence[Sequence[int]] | None,
) -> dict[str, list[Any]]:
    """What a reward function is called with, as TRL does: messages for chats, and every column as a list."""
    prompts: list[Any] = []
    answers: list[Any] = []
    for example, completion in zip(examples, completions, strict=True):
        if example.messages is not None:
            prompts.append([dict(message) for message in example.messages])
            answers.append([{"role": "assistant", "content": completion}])
        else:
            prompts.append(example.prompt if example.row_prompt is None else example.row_prompt)
            answers.append(completion)
    names = sorted(set().union(*(example.columns for example in examples)))
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    ids = {} if completion_ids is None else {"completion_ids": [list(row) for row in completion_ids]}
    return {"prompts": prompts, "completions": answers, **ids, **columns, "finished": list(finished)}


class FailureWindow:
    """Ends a run when too many of its last samples have no reward."""

    def __init__(self, size: int, most: float) -> None:
        self.size, self.most = size, most
        self._steps: deque[tuple[int, int]] = deque()
        self._samples = self._failed = 0
        self._last_failure = ""

    def add(self, failed: int, samples: int, last_failure: str = "") -> None:
        """Count the samples of a step.

        Raises:
            TrainingFault: more than the allowed share of a window have failed.
        """
        self._samples, self._failed = self._samples + samples, self._failed + failed
        self._last_failure = last_failure or self._last_failure
        self._steps.append((failed, samples))
        while sum(count for _, count in self._steps) - self._steps[0][1] >= self.size:
            self._steps.popleft()
        total = sum(count for _, count in self._steps)
        lost = sum(count for count, _ in self._steps)
        if lost > self.most * max(total, self.size):
            why = f"; the last: {last_failure}" if last_failure else ""
            raise TrainingFault(
                f"rewards: expected at most {self.most:.0%} of {max(total, self.size)} samples without a reward "
                f"(rewards.max_failed_fraction, rewards.window), got {lost}{why}"
            )

    def end(self) -> None:
        """Look at the stage as a whole, which may be shorter than the window.

        Raises:
            TrainingFault: no sample of it had a reward.
        """
        if self._samples and self._failed == self._samples:
            why = f"; the last: {self._last_failure}" if self._last_failure else ""
            raise TrainingFault(f"rewards: expected samples with a reward, got none of {self._samples}{why}")
