"""The report of one or more runs: a table for console and Markdown, and a self-contained HTML page."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aapa.engine.errors import UserError
from aapa.engine.metrics import METRICS_FILE, SAMPLES_FILE, Sample, read_metrics, read_samples
from aapa.engine.run_output import replace_file
from aapa.engine.statistics import Estimate, mean_interval, paired_difference

if TYPE_CHECKING:
    from rich.console import Console

SUMMARY_FILE = "summary.json"
RECIPE_FILE = "recipe.toml"
ROWS_FILE = "data.json"
REPORT_FILE = "report.html"
CURVES_FILE = "curves.png"
SEEDS_FILE = "seeds.png"
NOTHING = "–"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of summary.json as a person reads it: heading, how to write it, and what it means."""

    key: str
    heading: str
    write: Callable[[Any], str]
    meaning: str = ""
    text: bool = False


def _number(digits: int, sign: str = "") -> Callable[[Any], str]:
    return lambda value: format(value, f"{sign}.{digits}f")


def _interval(bounds: Any) -> str:
    return f"{bounds[0]:.2f}–{bounds[1]:.2f}"


def _count(value: Any) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.0f}"


COLUMNS = (
    Column("run", "run", str, "run directory", text=True),
    Column("name", "policy", str, "what was trained", text=True),
    Column("stage", "stage", str, "the stage after which it was evaluated", text=True),
    Column("seed", "seed", str),
    Column("split", "split", str, "examples it was evaluated on", text=True),
    Column("prompts", "prompts", _count, "number of prompts"),
    Column("pass_rate", "constraints met", _number(3), "share of responses that meet every constraint"),
    Column("pass_rate_ci", "95\u00a0% interval", _interval, "Wilson interval of the rate beside it"),
    Column("in_language", "in language", _number(3), "share of responses in the expert's language"),
    Column("true_quality", "both", _number(3), "constraints met and in the expert's language"),
    Column("proxy_reward", "proxy reward", _number(3), "the reward trained on, where it is a proxy"),
    Column("reward", "reward", _number(3), "mean weighted sum of the reward functions"),
    Column("length_ratio", "length ratio", _number(2), "response length over the expert's"),
    Column("distinct_2", "distinct-2", _number(3), "distinct word bigrams over all, on a budget of words"),
    Column("expert_logprob", "expert log-prob", _number(3, "+"), "mean log-prob of the experts' tokens"),
    Column("expert_logprob_drift", "expert log-prob drift", _number(3, "+"), "change of the experts' log-prob"),
    Column("tokens", "tokens", _count, "tokens trained on"),
    Column("seconds", "seconds", _count, "wall-clock time"),
)
_COMMON = ("seed", "split", "prompts")  # told once below the table where every row says the same
_MEASURED = ("pass_rate", "in_language", "true_quality", "proxy_reward", "length_ratio", "distinct_2")


@dataclass(frozen=True)
class Table:
    """A laid-out summary: columns that vary, cells as text, and the notes that stand below."""

    columns: tuple[Column, ...]
    cells: tuple[tuple[str, ...], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What a run directory holds; `missing` says what it does not, `rows` counts those of the user's own."""

    name: str
    directory: Path
    summary: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    rows: dict[str, int] | None = None
    missing: tuple[str, ...] = ()


def lay_out(rows: Sequence[Row]) -> Table:
    """Choose columns and write cells: what no row has is named below, what all rows share is said once.

    Raises:
        ValueError: a row is no table, or a figure is not of its kind.
    """
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"rows.{place}: expected a table of figures, got {type(row).__name__}")
    columns = _of_own_rows(rows) if rows and all("reward" in row for row in rows) else COLUMNS
    present = [column for column in columns if any(not _absent(row.get(column.key)) for row in rows)]
    if any(column.key == "expert_logprob_drift" for column in present):
        present = [column for column in present if column.key != "expert_logprob"]
    optional = ["run", "pass_rate_ci", "reward", "expert_logprob", "tokens"]
    # Of a policy that was only evaluated there is no drift to tell.
    optional += ["expert_logprob_drift"] if any(column.key == "expert_logprob" for column in present) else []
    absent = [column.heading for column in columns if column not in present and column.key not in optional]
    common = []
    for column in [column for column in present if column.key in _COMMON]:
        if len({row.get(column.key) for row in rows}) == 1:
            present.remove(column)
            common.append(f"{column.heading} {_cell(column, rows[0])}")
    cells = tuple(tuple(_cell(column, row) for column in present) for row in rows)
    notes = [f"all rows: {', '.join(common)}"] if common else []
    notes += [f"not measured: {', '.join(absent)}"] if rows and absent else []
    return Table(tuple(present), cells, tuple(rows), tuple(notes))


def _of_own_rows(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns of policies that reward functions judge: no task's verdicts, and what passes is said otherwise."""
    passed = Column("pass_rate", "passed", _number(3), "share of responses whose reward reaches evaluation.pass_at")
    found = {column.key: column for column in COLUMNS} | {"pass_rate": passed}
    verdicts = ("in_language", "true_quality", "proxy_reward")
    return tuple(column for key, column in found.items() if key not in verdicts or any(row.get(key) for row in rows))


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows of a summary as a table on the console.

    Raises:
        ValueError: a row is no table, or a figure is not of its kind.
    """
    # Imported here: the rest of the module works without it.
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = console or Console()
    table = lay_out(rows)
    if not rows:
        console.print("No policy has been evaluated yet.")
        return
    for places in _fitting(table, console.width):
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for place in places:
            column = table.columns[place]
            heading = column.heading.replace(" ", "\n")
            grid.add_column(heading, justify="left" if column.text else "right", no_wrap=True)
        for cells in table.cells:
            grid.add_row(*(Text(cells[place]) for place in places))
        console.print(grid)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _fitting(table: Table, width: int) -> list[list[int]]:
    """Columns in as few tables as fit the width; each begins with the columns that name the row."""
    needs = []
    for column, *cells in zip(table.columns, *table.cells, strict=True):
        needs.append(2 + max(map(len, (*column.heading.split(" "), *cells))))
    lead = [place for place, column in enumerate(table.columns) if column.text]
    parts = [list(lead)]
    for place in range(len(table.columns)):
        if place in lead:
            continue
        if sum(needs[used] for used in parts[-1]) + needs[place] > width and len(parts[-1]) > len(lead):
            parts.append(list(lead))
        parts[-1].append(place)
    return parts


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows of a summary as a Markdown table, what is common to all rows below it.

    Raises:
        ValueError: a row is no table, or a figure is not of its kind.
    """
    table = lay_out(rows)
    if not rows:
        return "No policy has been evaluated yet.\n"
    lines = [
        [column.heading for column in table.columns],
        ["--" if column.text else "--:" for column in table.columns],
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in table.cells),
    ]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    return text + "".join(f"\n{note[0].upper()}{note[1:]}.\n" for note in table.notes)


def seed_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Policies evaluated under several seeds: for each figure its mean over the seeds with a t interval.

    A policy is a name and a stage on a split; where a seed occurs twice the rows are not seeds of one thing,
    and are left alone.
    """
    found = []
    for (name, stage, split), seeds in _by_policy(rows).items():
        if len(seeds) < 2:
            continue
        figures = {
            key: mean_interval([row[key] for row in seeds.values()])
            for key in _MEASURED
            if all(not _absent(row.get(key)) for row in seeds.values())
        }
        found.append({"name": name, "stage": stage, "split": split, "seeds": len(seeds), "figures": figures})
    return found


def seed_differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Last stage of each policy against the first policy's, paired by the seeds both have (two at least)."""
    last: dict[tuple[Any, Any], dict[Any, Row]] = {}
    for (name, _, split), seeds in _by_policy(rows).items():
        last[name, split] = seeds
    found = []
    for (name, split), seeds in last.items():
        base_name, base = next((other, rows) for (other, where), rows in last.items() if where == split)
        shared = [seed for seed in seeds if seed in base]
        if name == base_name or len(shared) < 2:
            continue
        figures: dict[str, Estimate] = {}
        for key in _MEASURED:
            if not any(_absent(of_policy[seed].get(key)) for of_policy in (seeds, base) for seed in shared):
                a, b = ([of_policy[seed][key] for seed in shared] for of_policy in (seeds, base))
                figures[key] = paired_difference(a, b)
        found.append({"name": name, "against": base_name, "split": split, "seeds": len(shared)})
        found[-1]["figures"] = figures
    return found


def load_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Read run directories, each under the shortest name that tells it from the others.

    Raises:
        UserError: a directory is missing, holds nothing of a run, is given twice, or has a damaged file.
    """
    if not run_dirs:
        raise UserError("run_dirs: expected at least one run directory, got none")
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    for place, times in Counter(places).items():
        if times > 1:
            raise UserError(f"{place}: expected different run directories, got this one {times} times")
    return [_load_run(place, name) for place, name in zip(places, _short_names(places), strict=True)]


def write_report(run_dirs: Sequence[Path], output: Path | None = None) -> Path:
    """Write one self-contained HTML page about the runs, and the curves beside it as PNG; returns the page's path.

    Args:
        run_dirs: the runs, in the order they are shown.
        output: the page, or a directory for it; by default report.html in the first run directory.

    Raises:
        UserError: no run, a directory without one, a damaged file, or a page that cannot be written; it is named.
    """
    # Imported here: the page is built from this module's tables.
    from aapa.engine.report_page import render_page

    runs = load_runs(run_dirs)
    page = runs[0].directory if output is None else Path(output)
    if page.is_dir():
        page = page / REPORT_FILE
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(page, render_page(runs, page.parent).encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"output: expected a page that can be written, got {page}: {error}") from None
    return page


def arms_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs whose recipes differ in the seed alone, together under one name: the arms of an experiment."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.recipe is not None and run.metrics:
            same = {key: value for key, value in run.recipe.items() if key not in ("seed", "name", "output")}
            arms.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    named: dict[str, list[Run]] = {}
    for members in arms.values():
        # Character by character, as is meant: "grpo-seed" of "grpo-seed0" and "grpo-seed1".
        name = os.path.commonprefix([run.name for run in members]) if len(members) > 1 else members[0].name  # noqa: RUF071
        name = re.sub(r"[-_/. ]+(s|seed)?[-_/. ]*$", "", name) or members[0].name
        while name in named:
            name += "′"
        named[name] = members
    return named


def _load_run(directory: Path, name: str) -> Run:
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise UserError(f"{directory}: expected a run directory, got {found}")
    parts = (SUMMARY_FILE, METRICS_FILE, SAMPLES_FILE, RECIPE_FILE)
    here = [part for part in parts if (directory / part).is_file()]
    if not here:
        raise UserError(f"{directory}: expected a run directory with {', '.join(parts)}, got none of them")
    return Run(
        name=name,
        directory=directory,
        summary=_read_summary(directory / SUMMARY_FILE) if SUMMARY_FILE in here else [],
        metrics=read_metrics(directory) if METRICS_FILE in here else [],
        samples=read_samples(directory) if SAMPLES_FILE in here else [],
        recipe=_read_recipe(directory / RECIPE_FILE) if RECIPE_FILE in here else None,
        rows=_read_rows(directory / ROWS_FILE),
        missing=tuple(part for part in parts if part not in here),
    )


def _read_summary(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    try:
        lay_out(rows)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return rows


def _read_rows(path: Path) -> dict[str, int] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return None if found is None else {key: int(found[key]) for key in ("rows", "set_aside")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the number of rows and of those set aside, got {error}") from error


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected TOML, {error}") from error


def _short_names(places: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths differ in their parts")


def _by_policy(rows: Sequence[Row]) -> dict[tuple[Any, Any, Any], dict[Any, Row]]:
    """(name, stage, split) → seed → row; policies of which a seed occurs twice are left out."""
    groups: dict[tuple[Any, Any, Any], dict[Any, Row]] = {}
    twice = set()
    for row in rows:
        policy = (row.get("name"), row.get("stage"), row.get("split"))
        seeds = groups.setdefault(policy, {})
        if row.get("seed") in seeds:
            twice.add(policy)
        seeds[row.get("seed")] = row
    return {policy: seeds for policy, seeds in groups.items() if policy not in twice}


def _absent(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_absent(item) for item in value)
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _cell(column: Column, row: Row) -> str:
    value = row.get(column.key)
    if _absent(value):
        return NOTHING
    try:
        return column.write(value)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{column.key}: expected {column.meaning or 'a number'}, got {value!r}") from error
