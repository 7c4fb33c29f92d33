"""The tables of a summary: what varies in columns, what is common said once, seeds put together."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from aapa.engine.report import markdown_table, print_table, seed_differences, seed_rows

ROWS = [
    {
        "name": "grpo",
        "stage": "rl",
        "seed": 0,
        "split": "dev",
        "prompts": 256,
        "pass_rate": 0.0625,
        "pass_rate_ci": [0.0389, 0.0991],
        "in_language": 0.15,
        "true_quality": None,
        "length_ratio": 1.456,
        "expert_logprob_drift": 0.25,
        "tokens": 12_345,
        "seconds": 99.6,
    },
    {
        "name": "a|b",
        "stage": "rl",
        "seed": 1,
        "split": "dev",
        "prompts": 256,
        "pass_rate": 0.23,
        "tokens": 999,
    },
]


def test_markdown_table() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert lines[0] == (
        "| policy | stage | seed | constraints met | 95\u00a0% interval | in language | length ratio "
        "| expert log-prob drift | tokens | seconds |"
    )
    assert lines[1] == "| -- | -- | --: | --: | --: | --: | --: | --: | --: | --: |"
    assert lines[2] == "| grpo | rl | 0 | 0.062 | 0.04–0.10 | 0.150 | 1.46 | +0.250 | 12.3k | 100 |"
    assert lines[3] == "| a\\|b | rl | 1 | 0.230 | – | – | – | – | 999 | – |"
    assert lines[5] == "All rows: split dev, prompts 256."
    assert lines[7] == "Not measured: both, proxy reward, distinct-2."


@pytest.mark.parametrize("width", [60, 80, 200])
def test_console_table_shows_every_figure_whole(width: int) -> None:
    out = io.StringIO()
    print_table(ROWS, Console(file=out, width=width))
    text = out.getvalue()
    for cell in ("grpo", "a|b", "0.062", "0.04–0.10", "0.150", "1.46", "+0.250", "12.3k", "100", "999"):
        assert cell in text, cell
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"policy", text)) == (1 if width == 200 else 2)


def test_tables_without_rows_say_so() -> None:
    out = io.StringIO()
    print_table([], Console(file=out))
    assert "No policy has been evaluated yet." in out.getvalue()
    assert "No policy has been evaluated yet." in markdown_table([])


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^rows\.1: expected a table of figures, got int"):
        markdown_table([{}, 3])  # type: ignore[list-item]


def test_seed_rows_want_different_seeds_of_one_policy() -> None:
    row = {"name": "grpo", "stage": "rl", "split": "dev", "pass_rate": 0.4, "distinct_2": None}
    assert seed_rows([row | {"seed": 0}, row | {"seed": 1}, row | {"seed": 0}]) == []
    (found,) = seed_rows([row | {"seed": 0}, row | {"seed": 1, "pass_rate": 0.6}])
    assert found["seeds"] == 2
    assert found["figures"].keys() == {"pass_rate"}
    assert found["figures"]["pass_rate"].value == pytest.approx(0.5)


def test_seed_differences_pair_the_seeds_both_have() -> None:
    def row(name: str, seed: int, rate: float, stage: str = "rl") -> dict[str, Any]:
        return {"name": name, "stage": stage, "split": "dev", "seed": seed, "pass_rate": rate}

    rows = [row("a", 0, 0.9, "sft"), row("a", 1, 0.9, "sft")]
    rows += [row("a", 0, 0.1), row("a", 1, 0.3), row("b", 1, 0.5), row("b", 0, 0.2), row("b", 7, 0.99)]
    (found,) = seed_differences(rows)
    assert (found["name"], found["against"], found["seeds"]) == ("b", "a", 2)
    assert found["figures"]["pass_rate"].value == pytest.approx(((0.2 - 0.1) + (0.5 - 0.3)) / 2)
