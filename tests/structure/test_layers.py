"""Imports run one way, kernels ← aapa ← engine, and each large dependency has one folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"kernels": "aapa.kernels", "aapa": "aapa", "engine": "aapa.engine"}
# What each folder may import of ours.
ALLOWED = {"kernels": {"kernels"}, "aapa": {"aapa", "kernels"}, "engine": {"engine", "aapa", "kernels"}}
# Large dependencies, and the folder that may import them; None: any one folder, but only one.
OWNERS = {"megatron": "engine/policy", "vllm": None, "trl": None, "verl": None}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module an import statement names, inside functions and `if TYPE_CHECKING:` as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            else:
                yield node.lineno, node.module or ""
                # `from aapa import engine` imports a package as much as `import aapa.engine` does.
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(module: str) -> str | None:
    """The folder a module of ours lies in; None for others' modules."""
    parts = module.split(".")
    if parts[0] != "aapa":
        return None
    return parts[1] if parts[1:2] in (["engine"], ["kernels"]) else "aapa"


def violations(root: Path) -> list[str]:
    found: list[str] = []
    users: dict[str, set[str]] = {name: set() for name in OWNERS}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            where = file.relative_to(root)
            for line, module in imported(ast.parse(file.read_text(encoding="utf-8"))):
                top = module.split(".")[0]
                if module.startswith("."):
                    found.append(f"{where}:{line} imports {module}: relative")
                elif top in ("tests", "benchmarks", "engine", "kernels"):
                    found.append(f"{where}:{line} imports {module}: not a package of ours")
                elif (target := room(module)) is not None and target not in ALLOWED[folder]:
                    found.append(f"{where}:{line} imports {module}: against the arrows")
                if top in OWNERS:
                    users[top].add(where.parts[0] if len(where.parts) == 2 else "/".join(where.parts[:2]))
    for name, owner in OWNERS.items():
        if owner is not None and users[name] - {owner}:
            found.append(f"{name} is imported by {sorted(users[name] - {owner})}, not only by {owner}")
        if len(users[name]) > 1:
            found.append(f"{name} is imported by {sorted(users[name])}: more than one folder")
    return found


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("kernels/a.py", "from aapa.batch import TokenBatch", "against the arrows"),
        ("kernels/a.py", "import aapa", "against the arrows"),
        ("kernels/a.py", "def f():\n    from aapa.engine import cli", "against the arrows"),
        ("aapa/a.py", "from aapa import engine", "against the arrows"),
        ("aapa/sub/a.py", "import aapa.engine.cli as cli", "against the arrows"),
        ("engine/a.py", "from . import cli", "relative"),
        ("engine/a.py", "import kernels", "not a package of ours"),
        ("engine/a.py", "from benchmarks import harness", "not a package of ours"),
        ("engine/a.py", "import megatron.core", "megatron is imported by"),
        ("engine/rollout/a.py", "from megatron.core import mpu", "megatron is imported by"),
        ("aapa/a.py", "import megatron", "megatron is imported by"),
    ],
)
def test_each_rule_can_be_broken(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert any(complaint in line for line in violations(tmp_path)), violations(tmp_path)


def test_a_second_folder_for_a_dependency_is_found(tmp_path: Path) -> None:
    for folder in ("engine/rollout", "engine/serving"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("import vllm")
    assert violations(tmp_path) == ["vllm is imported by ['engine/rollout', 'engine/serving']: more than one folder"]


def test_allowed_imports_pass(tmp_path: Path) -> None:
    allowed = {
        "kernels/a.py": "import torch\nfrom aapa.kernels.fields import TokenFields",
        "aapa/a.py": "from aapa.kernels import policy_loss\nfrom aapa.batch import TokenBatch",
        "engine/a.py": "from aapa import SFT\nfrom aapa.kernels import policy_loss\nimport aapa.engine.cli",
        "engine/policy/a.py": "import megatron.core",
    }
    for file, source in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []
