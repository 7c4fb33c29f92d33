"""What importing the package costs and exports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aapa


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "statement",
    [
        "import aapa",
        "from aapa import GRPO, SFT, Anchor, Schedule",
        "import aapa.engine",
        "import aapa.engine.recipe",
        "import aapa.engine.cli",
        "from aapa.engine.recipe import recipe_reference; recipe_reference()",
    ],
)
def test_no_heavy_import(statement: str) -> None:
    heavy = "{'torch', 'triton', 'transformers', 'megatron', 'matplotlib', 'datasets'}"
    result = run(f"import sys\n{statement}\nprint(sorted({heavy} & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_command_line_does_not_load_pydantic_for_help() -> None:
    code = "import sys\nfrom aapa.engine.cli import main\ncode = main(['--help'])\n"
    result = run(code + "print(code, sorted({'pydantic', 'numpy', 'torch'} & set(sys.modules)))")
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


@pytest.mark.parametrize("name", aapa.__all__)
def test_every_export_exists(name: str) -> None:
    result = run(f"from aapa import {name}\nprint({name!r} in dir(__import__('aapa')))")
    assert (result.returncode, result.stdout.strip()) == (0, "True"), result.stderr


def test_an_unknown_export_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = aapa.Nonsense


@pytest.mark.parametrize("first", ["", "import aapa.kernels.policy_loss"])
def test_an_operation_is_a_function_whatever_was_imported_before(first: str) -> None:
    """The file and the function have one name; importing the file must not hide the function."""
    result = run(f"{first}\nfrom aapa.kernels import policy_loss\nprint(callable(policy_loss))")
    assert (result.returncode, result.stdout.strip()) == (0, "True"), result.stderr
