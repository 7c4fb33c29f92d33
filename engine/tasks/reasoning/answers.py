"""The answer in a response, and whether it is right by reasoning-gym's own scoring."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from aapa.engine.tasks.reasoning.problems import package

_LINE: Final = re.compile(r"^Answer:(.*)$", re.MULTILINE)
# As a number is usually written. Some of the package's scores take "1_2", "1,2" or digits of other scripts for 12.
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]*")
# The package gives a part of the credit where the answer is only contained in what was said.
_FULL_CREDIT: Final = 0.999


def extract(text: str) -> str | None:
    """Return the integer on the last line that begins with `Answer:`, or None where that line has none."""
    lines = _LINE.findall(text)
    answer = lines[-1].strip(" ") if lines else ""
    return answer if _INTEGER.fullmatch(answer) else None


def is_right(text: str, dataset: str, answer: str) -> bool:
    """Say whether the response's answer gets full credit; an unfinished response may.

    Args:
        text: the response.
        dataset: the package's dataset that the problem is from.
        answer: the right one.

    Raises:
        UserError: the package is not installed.
    """
    found = extract(text)
    return found is not None and _scorer(dataset)(found, {"answer": answer, "metadata": {}}) >= _FULL_CREDIT


def is_mentioned(text: str, answer: str) -> bool:
    """Say whether the right number appears anywhere, be it inside of another: a checker that can be gamed."""
    return answer in text


@cache
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = package().get_score_answer_fn(dataset)
    return scorer
