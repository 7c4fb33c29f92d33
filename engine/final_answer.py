"""A reward for rows whose responses end in an answer that can be compared: numbers and short texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

_MARK = re.compile(r"####|answer\s*:", re.IGNORECASE)
_DRESS = "*_`$ \t"


def final_answer(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    answer: Sequence[Any] | None = None,
    expert: Sequence[Any] | None = None,
    **columns: Any,
) -> list[float]:
    r"""Return 1 for every completion whose final answer is the row's, else 0.

    A text's final answer is what its last `\boxed{…}` holds, or else the rest of the line behind its last `####` or
    `Answer:`. Numbers are equal by value (`1,250.0` is `1250`), other answers letter by letter but for case.

    Args:
        prompts: not looked at.
        completions: texts, or messages of one text each.
        answer: the right answers, or texts that end in them; a row without one is judged by its expert.
        expert: the experts' responses, or lists of them, of which the first is taken.
        columns: further columns, not looked at.

    Raises:
        ValueError: a row has no answer, and its expert ends in none.
    """
    count = len(completions)
    answers, experts = answer or [None] * count, expert or [None] * count
    return [
        float(_same(extract(_said(completion)), _right(given, model)))
        for completion, given, model in zip(completions, answers, experts, strict=True)
    ]


def extract(text: str) -> str | None:
    """The final answer of a text, None where it marks none."""
    boxed = _last_box(text)
    if boxed is not None:
        return boxed
    found = list(_MARK.finditer(text))
    rest = text[found[-1].end() :].strip() if found else ""
    return rest.splitlines()[0] if rest else None


def _last_box(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def _said(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _right(given: Any, expert: Any) -> str:
    if given is not None:
        text = str(given)
        return extract(text) or text
    first = expert[0] if isinstance(expert, list) and expert else expert
    found = extract(first) if isinstance(first, str) else None
    if found is None:
        wanted = "a column with the right answer, or an expert that ends with \\boxed{…}, '#### …' or 'Answer: …'"
        raise ValueError(f"answer: expected {wanted}, got {'no expert' if first is None else repr(first[-40:])}")
    return found


def _same(found: str | None, right: str) -> bool:
    if found is None:
        return False
    one, other = _plain(found), _plain(right)
    numbers = _number(one), _number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return bool(one) and one.casefold() == other.casefold()


def _plain(text: str) -> str:
    return text.strip().strip(_DRESS).removesuffix(".").strip(_DRESS)


def _number(text: str) -> Decimal | None:
    """Digits with commas between thousands, a sign and decimals."""
    if not re.fullmatch(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?", text, re.ASCII):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:  # a sign alone
        return None
