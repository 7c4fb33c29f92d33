"""Rows of the user's own data: JSON lines by their place in the file, Parquet and `datasets` through Arrow."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from aapa.engine.errors import UserError

JSON_LINES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PARQUET = (".parquet",)
BATCH = 1000


class BadRow(ValueError):
    """Why a row cannot be used; the text reads on from `<file>:<line>: `."""


class Rows(Protocol):
    """Rows that are read when asked for.

    Attributes:
        digest: changes when a row does.
    """

    digest: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]:
        """A row's columns. Raises `BadRow`."""

    def place(self, index: int) -> str:
        """`<file>:<line>` of a row, counted from 1."""

    def scan(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        """All rows in order, or what is wrong with them."""


class JsonLines:
    """Objects in files of a JSON object per line; held are 32 bytes a row, not the rows.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path], field: str) -> None:
        self._paths = list(paths)
        self._files = [_opened(path, field) for path in paths]
        self._file, self._line = array("q"), array("q")
        self._start, self._size = array("q"), array("q")
        digest = hashlib.blake2b(digest_size=16)
        for number, file in enumerate(self._files):
            start = 0
            for count, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    self._file.append(number)
                    self._line.append(count)
                    self._start.append(start)
                    self._size.append(len(line))
                start += len(line)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._start)

    def row(self, index: int) -> dict[str, Any]:
        file = self._files[self._file[index]]
        line = os.pread(file.fileno(), self._size[index], self._start[index])
        return parse_line(line.removeprefix(b"\xef\xbb\xbf") if self._start[index] == 0 else line)

    def place(self, index: int) -> str:
        return f"{self._paths[self._file[index]]}:{self._line[index]}"

    def scan(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for index in range(len(self)):
            try:
                yield index, self.row(index)
            except BadRow as error:
                yield index, error


def _opened(path: Path, field: str) -> IO[bytes]:
    """The file, or what it decompresses to in a nameless file that goes with the process."""
    try:
        if path.suffix != ".gz":
            return path.open("rb")
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its rows are read
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, plain)
    except (OSError, EOFError) as error:
        raise UserError(f"{field}: expected a readable file, got {path}: {error}") from None
    plain.seek(0)
    return plain


def parse_line(line: bytes) -> dict[str, Any]:
    """The columns of a line.

    Raises:
        BadRow: it is no JSON object in UTF-8, or a key of it comes twice.
    """
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise BadRow(f"expected UTF-8, got byte 0x{line[error.start]:02x} at {error.start}") from None
    except BadRow:
        raise
    except RecursionError:
        raise BadRow("expected a JSON object, got one nested too deeply") from None
    except ValueError as error:
        raise BadRow(f"expected a JSON object, got text that is none: {error}") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {type(row).__name__}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise BadRow(f"expected each key once, got {twice!r} twice")
    return table


class ArrowRows:
    """Rows of a `datasets.Dataset`, which maps its Arrow files into memory."""

    def __init__(self, dataset: Any, label: str, digest: str) -> None:
        self._dataset, self._label, self.digest = dataset, label, digest

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> dict[str, Any]:
        return dict(self._dataset[index])

    def place(self, index: int) -> str:
        return f"{self._label}:{index + 1}"

    def scan(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for start in range(0, len(self), BATCH):
            columns = self._dataset[start : start + BATCH]
            for offset in range(min(BATCH, len(self) - start)):
                yield start + offset, {name: values[offset] for name, values in columns.items()}


class Joined:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = list(parts)
        self._first = [0]
        for part in self._parts:
            self._first.append(self._first[-1] + len(part))
        self.digest = hashlib.blake2b("".join(part.digest for part in parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self._first[-1]

    def _at(self, index: int) -> tuple[Rows, int]:
        number = next(n for n, end in enumerate(self._first[1:]) if index < end)
        return self._parts[number], index - self._first[number]

    def row(self, index: int) -> dict[str, Any]:
        part, inner = self._at(index)
        return part.row(inner)

    def place(self, index: int) -> str:
        part, inner = self._at(index)
        return part.place(inner)

    def scan(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for part, first in zip(self._parts, self._first, strict=False):
            for index, row in part.scan():
                yield first + index, row


def open_files(patterns: Sequence[str], field: str) -> Rows:
    """Rows of all files that the patterns name, in the order of the patterns and of the names each finds.

    Raises:
        UserError: a pattern that finds nothing, a file of another kind, or one that cannot be read.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"{field}: expected an existing file or a pattern that finds some, got {pattern!r}")
        paths += [Path(name) for name in found if Path(name) not in paths]
    parts: list[Rows] = []
    lines: list[Path] = []
    for path in paths:
        if path.is_dir():
            raise UserError(f"{field}: expected files, got the directory {path}; saved datasets go under data.dataset")
        if path.name.endswith(JSON_LINES):
            lines.append(path)
        elif path.name.endswith(PARQUET):
            parts += [*_lines(lines, field), _parquet(path, field)]
            lines = []
        else:
            raise UserError(f"{field}: expected {', '.join((*JSON_LINES, *PARQUET))}, got {path}")
    parts += _lines(lines, field)
    return parts[0] if len(parts) == 1 else Joined(parts)


def _lines(paths: list[Path], field: str) -> list[Rows]:
    return [JsonLines(paths, field)] if paths else []


def _parquet(path: Path, field: str) -> Rows:
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    try:
        pyarrow.parquet.ParquetFile(path).close()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: expected a readable Parquet file, got {path}: {error}") from None
    disable_progress_bar()
    return ArrowRows(Dataset.from_parquet(str(path), split="train"), str(path), digest)


def open_dataset(name: str, subset: str | None, split: str) -> Rows:
    """Rows of a dataset: a directory that `save_to_disk` wrote, or a name on the Hugging Face hub.

    Raises:
        UserError: there is no such dataset, or it has no such split.
    """
    import datasets

    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = "a directory written by save_to_disk, or a dataset of the hub"
        raise UserError(f"data.dataset: expected {wanted}, got {name!r}, split {split!r}: {reason}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"data.split: expected one of {', '.join(map(str, found))}, got {split!r}")
        found = found[split]
    return ArrowRows(found, f"{name}[{split}]", found._fingerprint)
