"""Files and functions stay readable in one sitting."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("aapa", "engine", "kernels", "benchmarks", "tests")
FILE_LINES = 400
FUNCTION_LINES = 60


def long_files(root: Path) -> list[str]:
    return [
        f"{file.relative_to(root)}: {lines} lines"
        for folder in FOLDERS
        for file in sorted((root / folder).rglob("*.py"))
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > FILE_LINES
    ]


def long_functions(root: Path) -> list[str]:
    """Functions of the package whose code, docstring left out, is too long."""
    found: list[str] = []
    for folder in ("aapa", "engine", "kernels"):
        for file in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    lines = node.end_lineno - node.lineno + 1
                    if ast.get_docstring(node) is not None:
                        first = node.body[0]
                        assert first.end_lineno is not None
                        lines -= first.end_lineno - first.lineno + 1
                    if lines > FUNCTION_LINES:
                        found.append(f"{file.relative_to(root)}:{node.lineno} {node.name}: {lines} lines")
    return found


def test_files_are_short() -> None:
    assert long_files(ROOT) == []


def test_functions_are_short() -> None:
    assert long_functions(ROOT) == []


def test_long_ones_are_found(tmp_path: Path) -> None:
    (tmp_path / "aapa").mkdir()
    body = "\n".join("    x = 1" for _ in range(FUNCTION_LINES))
    (tmp_path / "aapa" / "long.py").write_text(f'def f():\n    """Doc."""\n{body}\n' + "\n" * FILE_LINES)
    assert long_functions(tmp_path) == [f"aapa/long.py:1 f: {FUNCTION_LINES + 1} lines"]
    assert len(long_files(tmp_path)) == 1
    (tmp_path / "aapa" / "long.py").write_text(f'def f():\n    """Doc."""\n{body[:-10]}\n')
    assert long_functions(tmp_path) == long_files(tmp_path) == []
