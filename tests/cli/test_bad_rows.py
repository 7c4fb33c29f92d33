"""Files and datasets of rows that cannot be read, or only in part: exit 2 before training, or rows set aside."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from own_rows import rows, write_rows
from spoiling import Spoil, both, chats, data, edited, file, lines, refused

from aapa.engine import cli

PARQUET = 'files = "rows.parquet"'
README_ROWS = """
{"prompt": "What is 12 + 30?", "expert": "12 and 30 make 42. Answer: 42", "answer": 42}
{"prompt": "What is 7 + 8?", "expert": ["7 and 8 make 15. Answer: 15", "8 + 7 = 15. Answer: 15"], "answer": 15}
"""


def not_utf8(texts: list[str], spoilt: int) -> pa.Array:
    """A column of strings of which one is no UTF-8, as writers that do not look make it."""
    raw = [b"\xff\xfe" if place == spoilt else text.encode() for place, text in enumerate(texts)]
    return pa.Array.from_buffers(pa.string(), len(raw), pa.array(raw, pa.binary()).buffers())


def columns(count: int = 100) -> dict[str, pa.Array]:
    made = rows(count)
    return {name: pa.array([row[name] for row in made]) for name in made[0]}


def parquet(table: pa.Table) -> Spoil:
    return both(lambda folder: pyarrow.parquet.write_table(table, folder / "rows.parquet"), data(PARQUET))


def corrupt_pages(folder: Path) -> None:
    parquet(pa.table(columns(2000)))(folder)
    path = folder / "rows.parquet"
    content = bytearray(path.read_bytes())
    content[200:1200] = b"\xff" * 1000
    path.write_bytes(content)


def gz(spoil: Callable[[bytes], bytes]) -> Spoil:
    def spoilt(folder: Path) -> None:
        packed = gzip.compress(write_rows(folder / "plain", rows(2000)).read_bytes())
        (folder / "rows.jsonl.gz").write_bytes(spoil(packed))
        data('files = "rows.jsonl.gz"')(folder)

    return spoilt


def saved(state: str) -> Spoil:
    def spoil(folder: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(rows(10)).save_to_disk(folder / "saved")
        (folder / "saved" / "state.json").write_text(state)
        data('dataset = "saved"')(folder)

    return spoil


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    data('files = "pipe.jsonl"')(folder)


CASES: dict[str, tuple[Spoil, str]] = {
    "Parquet of no bytes": (
        both(file("rows.parquet", ""), data(PARQUET)),
        r"data.files: expected a readable Parquet file, got .*rows.parquet: Parquet file size is 0 bytes",
    ),
    "Parquet without columns": (
        parquet(pa.table({})),
        r"data.files: expected a Parquet file with columns, got .*rows.parquet: it has none",
    ),
    "Parquet without rows": (parquet(pa.table(columns()).slice(0, 0)), r"data: expected at least one row, got none"),
    "Parquet with a column twice": (
        parquet(pa.table([*columns().values(), pa.array(["a"] * 100)], [*columns(), "prompt"])),
        r"data.files: expected .* each column once, got .*rows.parquet: 'prompt' is there twice",
    ),
    "Parquet with a map": (
        parquet(pa.table(columns() | {"facts": pa.array([[("a", 1)]] * 100, pa.map_(pa.string(), pa.int64()))})),
        r"data.files: expected columns that datasets reads, got .*rows.parquet: column 'facts': .*map",
    ),
    "Parquet of corrupt pages": (corrupt_pages, r"data.files: expected a whole Parquet file, got .*rows.parquet: "),
    "Parquet of bad texts": (
        parquet(pa.table({"prompt": not_utf8(["a"] * 9, 3), "expert": ["e"] * 9})),
        r"got 1\n.*rows.parquet:4: expected UTF-8, got byte 0xff at 0 of b'",
    ),
    "gzip that was cut": (
        gz(lambda packed: packed[:-2000]),
        r"data.files: expected a whole gzip file, got .*rows.jsonl.gz, readable at least to line [1-9]\d*: .* ended",
    ),
    "gzip that is corrupt": (
        gz(lambda packed: packed[:10] + b"\xff" * 20 + packed[30:]),
        r"data.files: expected a whole gzip file, got .*rows.jsonl.gz, readable at least to line 0: Error -3 while",
    ),
    "gzip of another sum": (
        gz(lambda packed: packed[:-8] + bytes(8)),
        r"expected a whole gzip file, got .*rows.jsonl.gz, readable at least to line [1-9]\d*: CRC check failed",
    ),
    "a saved dataset with an empty state": (
        saved(""),
        r"data.dataset: expected a whole directory written by save_to_disk, got '.*saved': JSONDecodeError",
    ),
    "a saved dataset without its state": (
        saved("{}"),
        r"data.dataset: expected a whole directory written by save_to_disk, got '.*saved': KeyError: '_data_files'",
    ),
    "the rows of the README alone": (
        file("rows.jsonl", README_ROWS),
        r"data.files: expected more different prompts than are held out .*= 0.2 of them, at least 2\), got 2; add rows",
    ),
    "a pipe": (fifo, r"data.files: expected regular files, .*, got .*pipe.jsonl"),
    "a file as a dataset": (
        data('dataset = "rows.jsonl"'),
        r"data.dataset: expected a directory .*, got the file .*rows.jsonl; files go under data.files",
    ),
    "half a surrogate pair as a role": (
        lines(*[{"prompt": [{"role": "\ud800", "content": "a"}], "expert": "b"}] * 3),
        r"rows.jsonl:1: prompt\[0\].role: expected Unicode text, got half a surrogate pair at 0",
    ),
    "Parquet of an unknown time zone": (
        parquet(
            pa.table({"prompt": ["a"] * 9, "expert": ["e"] * 9, "at": pa.array([0] * 9, pa.timestamp("s", "Mars/X"))})
        ),
        r"got 9\n.*rows.parquet:1: expected values that Python holds, got one of which 'Mars/X'",
    ),
    "a subset of a saved dataset": (
        both(saved("{}"), edited("r.toml", 'dataset = "saved"', 'dataset = "saved"\nsubset = "main"')),
        r"data.subset: expected none, for .*saved is a saved dataset, got 'main'",
    ),
    "prompts as experts": (
        data('files = "rows.jsonl"\nexpert_column = "prompt"'),
        r"data.expert_column: expected another column than the prompt's, got 'prompt'",
    ),
    "no name": (data('files = ""'), r"data.files: expected a string that is not empty"),
    "a name that is too long": (data(f'files = "{"x" * 5000}"'), r"expected a shorter path, got '"),
    "keywords of the tokenizer": (
        data('files = "rows.jsonl"\ntemplate_kwargs = { padding = true }'),
        r"data.template_kwargs.padding: expected a keyword that the run does not give itself, got 'padding'",
    ),
    "keywords that are the run's": (
        data('files = "rows.jsonl"\ntemplate_kwargs = { tokenize = true }'),
        r"data.template_kwargs.tokenize: expected a keyword that the run does not give itself, got 'tokenize'",
    ),
    "keywords that no template takes": (
        both(chats, data('files = "rows.jsonl"\ntemplate_kwargs = { documents = "none" }')),
        r"data.template_kwargs: expected keywords that the chat template takes, got {'documents': 'none'}: ",
    ),
}


@pytest.mark.parametrize("words", [["--check"], []], ids=["check", "train"])
@pytest.mark.parametrize("case", CASES)
def test_refused(folder: Path, capsys: pytest.CaptureFixture[str], case: str, words: list[str]) -> None:
    spoil, pattern = CASES[case]
    spoil(folder)
    refused(["train", "r.toml", *words], pattern, capsys, folder)


def test_bad_texts_of_parquet_are_set_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = columns(1500)
    table["prompt"] = not_utf8(table["prompt"].to_pylist(), 1234)
    parquet(pa.table(table))(folder)
    assert cli.main(["train", "r.toml", "--check"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1 of 1500 rows set aside\n.*rows.parquet:1235: expected UTF-8, got byte 0xff", printed)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lines('{"prompt": ', count=200), r"expected the 200 rows that the run in runs/own began with"),
        (lines(*['{"prompt": '] * 9), r"got 9\n"),
        (both(lines('{"prompt": ', count=200), edited("r.toml", "1e-3", "1e-4")), r"expected"),
    ],
    ids=["other rows", "bad rows", "another recipe"],
)
def test_a_run_that_cannot_go_on_is_left_as_it_is(folder: Path, capsys, spoil: Spoil, pattern: str) -> None:
    words = ["train", "r.toml", "--stages.sft.steps", "1", "--stages.rl.steps", "1"]
    assert cli.main(words) == 0
    before = tree(folder / "runs")
    spoil(folder)
    capsys.readouterr()
    assert cli.main(words) == 2
    assert re.search(pattern, capsys.readouterr().err)
    assert tree(folder / "runs") == before


def test_an_evaluation_sets_rows_aside_without_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines({"prompt": ""}, count=200)(folder)
    assert cli.main(["train", "r.toml", "--stages.sft.steps", "1", "--stages.rl.steps", "1"]) == 0
    assert "all rows set aside are in runs/own/quarantine.jsonl" in capsys.readouterr().out
    assert json.loads((folder / "runs/own/quarantine.jsonl").read_text())["line"] == 1
    assert cli.main(["eval", "runs/own", "--output", "out"]) == 0
    assert "data: 1 of 200 rows set aside\n" in capsys.readouterr().out
    assert {path.name for path in (folder / "out").iterdir()} == {"summary.json", "samples.jsonl"}
