"""Rows of the user's own data: JSON lines by their place in the file, Parquet and `datasets` through Arrow."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
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
        return ((index, _row_or_bad(self, index)) for index in range(len(self)))


def _row_or_bad(rows: Rows, index: int) -> dict[str, Any] | BadRow:
    try:
        return rows.row(index)
    except BadRow as error:
        return error


def _opened(path: Path, field: str) -> IO[bytes]:
    """The file, or what it decompresses to in a nameless file that goes with the process."""
    try:
        if path.suffix != ".gz":
            return path.open("rb")
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its rows are read
        with gzip.open(path) as packed:
            try:
                shutil.copyfileobj(packed, plain)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                plain.seek(0)
                text = f"{path}, readable at least to line {sum(1 for _ in plain)}: {error}; write it again"
                raise UserError(f"{field}: expected a whole gzip file, got {text}") from None
    except OSError as error:
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
        try:
            return dict(self._dataset[index])
        except UnicodeDecodeError as error:
            got = f"byte 0x{error.object[error.start]:02x} at {error.start} of {error.object!r:.80}"
            raise BadRow(f"expected UTF-8, got {got}") from None
        except (ValueError, ArithmeticError, LookupError) as error:  # an unknown time zone is a LookupError
            raise BadRow(f"expected values that Python holds, got one of which {error}") from None

    def place(self, index: int) -> str:
        return f"{self._label}:{index + 1}"

    def scan(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for start in range(0, len(self), BATCH):
            count = min(BATCH, len(self) - start)
            try:
                columns = self._dataset[start : start + count]
            except (ValueError, ArithmeticError, LookupError):  # of some row in the batch
                yield from ((index, _row_or_bad(self, index)) for index in range(start, start + count))
                continue
            for offset in range(count):
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
        if not path.is_file():
            raise UserError(f"{field}: expected regular files, which are read more than once, got {path}")
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
    from datasets import Dataset, Features
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils.logging import disable_progress_bar

    def refused(wanted: str, reason: object) -> UserError:
        return UserError(f"{field}: expected {wanted}, got {path}: {reason}")

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows, schema = table.metadata.num_rows, table.schema_arrow
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except (pyarrow.ArrowException, OSError) as error:
        raise refused("a readable Parquet file", error) from None
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise refused("a Parquet file with each column once", f"{twice!r} is there twice")
    for column in schema:
        try:
            Features.from_arrow_schema(pyarrow.schema([column]))
        except ValueError as error:
            raise refused("columns that datasets reads", f"column {column.name!r}: {error}; leave it out") from None
    if not schema.names:
        raise refused("a Parquet file with columns", "it has none")
    disable_progress_bar()
    try:
        found = Dataset.from_parquet(str(path), split="train") if rows else Dataset.from_dict({})
    except (DatasetGenerationError, OSError) as error:
        raise refused("a whole Parquet file", f"{error.__cause__ or error}; write it again") from None
    return ArrowRows(found, str(path), digest)


def open_dataset(name: str, subset: str | None, split: str) -> Rows:
    """Rows of a dataset: a directory that `save_to_disk` wrote, or a name on the Hugging Face hub.

    Raises:
        UserError: there is no such dataset, or it has no such split.
    """
    import datasets

    if Path(name).is_dir():
        if subset is not None:
            raise UserError(f"data.subset: expected none, for {name} is a saved dataset, got {subset!r}")
        try:
            found = datasets.load_from_disk(name)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # whatever its JSON files hold
            wanted = "a whole directory written by save_to_disk"
            raise UserError(f"data.dataset: expected {wanted}, got {name!r}: {_first_line(error)}") from None
    elif Path(name).exists():
        wanted = "a directory written by save_to_disk, or a dataset of the hub"
        raise UserError(f"data.dataset: expected {wanted}, got the file {name}; files go under data.files")
    else:
        try:
            found = datasets.load_dataset(name, subset, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            wanted = "a directory written by save_to_disk, or a dataset of the hub"
            got = f"{name!r}, split {split!r}: {_first_line(error)}"
            raise UserError(f"data.dataset: expected {wanted}, got {got}") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"data.split: expected one of {', '.join(map(str, found))}, got {split!r}")
        found = found[split]
    return ArrowRows(found, f"{name}[{split}]", found._fingerprint)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
