"""One stem, one idea: every operation has a reference, a test and a benchmark of its name."""

from __future__ import annotations

from pathlib import Path

from aapa.kernels.dispatch import AVAILABLE

ROOT = Path(__file__).resolve().parents[2]
# Files of kernels/ that are not operations: types and checks shared by several, and the choice of a backend.
NOT_OPERATIONS = {"__init__", "checks", "dispatch", "fields", "sentence_types"}


def stems(root: Path) -> set[str]:
    return {file.stem for file in (root / "kernels").glob("*.py")} - NOT_OPERATIONS


def missing(root: Path) -> list[str]:
    """Files that an operation should have and has not."""
    patterns = (
        "kernels/reference/{}.py",
        "tests/kernels/test_{}.py",
        "benchmarks/kernels/bench_{}.py",
    )
    wanted = [pattern.format(stem) for stem in sorted(stems(root)) for pattern in patterns]
    return [name for name in wanted if not (root / name).is_file()]


def test_every_operation_has_all_files() -> None:
    assert missing(ROOT) == []


def test_every_operation_can_be_dispatched() -> None:
    assert set(AVAILABLE) == stems(ROOT)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    for name in (
        "kernels/one.py",
        "kernels/__init__.py",
        "kernels/reference/one.py",
        "tests/kernels/test_one.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert missing(tmp_path) == ["benchmarks/kernels/bench_one.py"]
