"""Looks at every row once before training: which rows can be used, and what is wrong with the others."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from aapa.engine.data_prompts import Renderer, Row, RowRules, read_row
from aapa.engine.data_rows import BadRow, Rows
from aapa.engine.errors import UserError
from aapa.engine.examples import Example

CHUNK = 1000
SHOWN = 5


@dataclass
class Scan:
    """What a look at every row found.

    Attributes:
        good: numbers of the usable rows, in order.
        bad: place and reason of every other row.
        key: of each usable row, a hash of its prompt.
        columns: names seen in usable rows.
        experts: number of usable rows with an expert.
        chat: whether some prompt goes through the chat template.
    """

    good: array[int] = field(default_factory=lambda: array("q"))
    bad: list[tuple[str, str]] = field(default_factory=list)
    key: array[int] = field(default_factory=lambda: array("Q"))
    columns: dict[str, None] = field(default_factory=dict)
    experts: int = 0
    chat: bool = False


def scan_rows(rows: Rows, renderer: Renderer) -> Scan:
    """Read and render every row, and count the tokens of those that might be too long.

    Tokens of a chunk are counted beside the reading of the next one: the tokenizer leaves Python to others meanwhile.
    """
    scan = Scan()
    with ThreadPoolExecutor(1) as counter:
        last: tuple[dict[int, Row | BadRow], Future[list[tuple[int, int, int]]]] | None = None
        for checked in _chunks(rows, renderer.rules):
            texts = _doubtful(checked, renderer)
            counted = counter.submit(_lengths, texts, checked, renderer)
            if last is not None:
                _add(scan, rows, renderer, *last)
            last = checked, counted
        if last is not None:
            _add(scan, rows, renderer, *last)
    return scan


def _chunks(rows: Rows, rules: RowRules) -> Iterator[dict[int, Row | BadRow]]:
    found = rows.scan()
    while chunk := list(islice(found, CHUNK)):
        checked: dict[int, Row | BadRow] = {}
        for index, row in chunk:
            try:
                if isinstance(row, BadRow):
                    raise row
                checked[index] = read_row(row, rules)
            except BadRow as error:
                checked[index] = error
        yield checked


def _add(
    scan: Scan,
    rows: Rows,
    renderer: Renderer,
    checked: dict[int, Row | BadRow],
    counted: Future[list[tuple[int, int, int]]],
) -> None:
    """Enter a chunk whose tokens are counted, in the order of its rows."""
    for index, size, longest in counted.result():
        if reason := _misfit(size, longest, renderer.rules):
            checked[index] = BadRow(reason)
    for index, outcome in checked.items():
        if isinstance(outcome, BadRow):
            scan.bad.append((rows.place(index), str(outcome)))
            continue
        scan.good.append(index)
        scan.key.append(_key(outcome))
        scan.columns.update(dict.fromkeys(outcome.columns))
        scan.experts += bool(outcome.experts)
        scan.chat = scan.chat or renderer.is_chat(outcome.prompt)


def _key(row: Row) -> int:
    text = row.prompt
    if not isinstance(text, str):  # Arrow holds dates and bytes, too
        text = json.dumps([dict(message) for message in text], default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _doubtful(checked: dict[int, Row | BadRow], renderer: Renderer) -> dict[int, str]:
    """Prompts, as the model reads them, of rows that may be too long or empty; a `BadRow` takes the place of what the
    template refuses.

    Every prompt is rendered, for what a template makes of one follows from no other.
    """
    texts: dict[int, str] = {}
    for index, row in checked.items():
        if isinstance(row, BadRow):
            continue
        try:
            text = renderer.text(row.prompt)
        except BadRow as error:
            checked[index] = error
            continue
        prompt, expert = renderer.most_tokens(text), _longest(row, renderer)
        fits = prompt is not None and expert is not None and not _misfit(prompt, expert, renderer.rules)
        if not (fits and renderer.surely_some(text)):
            texts[index] = text
    return texts


def _longest(row: Row, renderer: Renderer) -> int | None:
    """A bound of the tokens of its longest expert with its end of sequence."""
    experts = [renderer.most_tokens(text) for text in row.experts]
    return None if None in experts else max((1 + (expert or 0) for expert in experts), default=0)


def _misfit(prompt: int, expert: int, rules: RowRules) -> str | None:
    """What is wrong with the number of tokens, if anything."""
    if prompt == 0:
        return f"{rules.prompt_column}: expected at least one token, got none"
    if prompt > rules.longest_prompt:
        text = f"{rules.longest_prompt} tokens, for the model's context less rollout.max_new_tokens"
        return f"{rules.prompt_column}: expected at most {text}, got {prompt}"
    if expert and prompt + expert > rules.longest:
        text = f"{rules.longest} tokens with its prompt, the model's context"
        return f"{rules.expert_column}: expected at most {text}, got {prompt + expert}"
    return None


def _lengths(
    prompts: Mapping[int, str], checked: Mapping[int, Row | BadRow], renderer: Renderer
) -> list[tuple[int, int, int]]:
    """Tokens of the prompt and of the longest expert of each row with its end of sequence, or a bound that will do."""
    found: list[tuple[int, int, int]] = []
    sizes = dict(zip(prompts, _count(renderer, list(prompts.values())), strict=True))
    experts: dict[int, tuple[str, ...]] = {}
    for index, size in sizes.items():
        row = checked[index]
        assert isinstance(row, Row)
        bound = _longest(row, renderer)
        if bound is not None and not _misfit(size, bound, renderer.rules):
            found.append((index, size, bound))
        else:
            experts[index] = row.experts
    counts = iter(_count(renderer, [text for texts in experts.values() for text in texts]))
    for index, texts in experts.items():
        found.append((index, sizes[index], max((next(counts) + 1 for _ in texts), default=0)))
    return found


def _count(renderer: Renderer, texts: list[str]) -> list[int]:
    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [len(ids) for ids in renderer.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # What transformers calls, without the lists it makes of the outcome, which take most of the time.
    backend.no_truncation()
    backend.no_padding()
    return [len(encoding) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


class RowExamples(Sequence[Example]):
    """Examples that are read when asked for."""

    def __init__(self, rows: Rows, renderer: Renderer, indices: np.ndarray) -> None:
        self.rows, self.renderer, self.indices = rows, renderer, indices
        self.needs_experts = renderer.rules.needs_experts

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> RowExamples: ...
    def __getitem__(self, index: int | slice) -> Example | RowExamples:
        if isinstance(index, slice):
            return RowExamples(self.rows, self.renderer, self.indices[index])
        number = int(self.indices[index])
        try:
            return self.renderer.example(read_row(self.rows.row(number), self.renderer.rules), number)
        except BadRow as error:  # it was good when the run began
            raise UserError(f"{self.rows.place(number)}: {error}") from None


def held_out(scan: Scan, fraction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, and two halves of the held-out ones; rows of one prompt stay together.

    Which prompts are held out follows from their hashes, so the order of the file and the seed do not matter.
    """
    good, key = np.asarray(scan.good), np.asarray(scan.key)
    if fraction == 0:
        return good, good[:0], good[:0]
    prompts = np.unique(key)
    count = min(max(2, round(fraction * len(prompts))), len(prompts))
    halves = [good[np.isin(key, prompts[start:count:2])] for start in (0, 1)]
    return good[~np.isin(key, prompts[:count])], halves[0], halves[1]


def quarantine_lines(bad: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The lines of `quarantine.jsonl`."""
    for place, reason in bad:
        file, _, line = place.rpartition(":")
        yield json.dumps({"file": file, "line": int(line), "reason": reason}, ensure_ascii=False)


def write_quarantine(directory: Path, bad: Sequence[tuple[str, str]]) -> Path:
    """Write every bad row's place and reason; the file appears whole, and goes where there is none."""
    path = directory / "quarantine.jsonl"
    try:
        if not bad:
            path.unlink(missing_ok=True)
            return path
        directory.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(".jsonl.staging")
        staging.write_text("\n".join(quarantine_lines(bad)) + "\n", encoding="utf-8", errors="replace")
        staging.replace(path)
    except OSError as error:
        raise UserError(f"output: expected a directory to write to, got {directory}: {error}") from None
    return path


def first_few(bad: Sequence[tuple[str, str]]) -> str:
    """The first bad rows, a line each."""
    lines = [f"{place}: {reason}" for place, reason in bad[:SHOWN]]
    return "\n".join([*lines, f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else lines)


def explain_columns(scan: Scan, rows: Rows, rules: RowRules) -> str | None:
    """Where no row has the prompt's or the expert's column at all: that, in a line."""
    names: dict[str, Any] = {}
    for _, row in islice(rows.scan(), CHUNK):
        if not isinstance(row, BadRow):
            names.update(dict.fromkeys(row))
    if not names or scan.good:
        return None
    for field_name, column in (("prompt", rules.prompt_column), ("expert", rules.expert_column)):
        if column not in names and (field_name == "prompt" or rules.needs_experts):
            return f"data.{field_name}_column: expected one of {', '.join(map(repr, names))}, got {column!r}"
    return None
