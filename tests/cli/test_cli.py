"""Exit codes, messages and help of the program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aapa
from aapa.engine import cli
from aapa.engine.errors import Interrupted, TrainingFault, UserError
from aapa.engine.recipe import Recipe

RECIPE = """\
name = "small"
[[stages]]
name = "sft"
steps = 3
learning_rate = 1e-3
objective = { kind = "sft" }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "r.toml").write_text(RECIPE)
    return "r.toml"


Fake = Callable[..., list[Any]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a function in the place of a module's; returns the list its calls are added to."""

    def install(module: str, name: str, result: Any = None) -> list[Any]:
        calls: list[Any] = []

        def function(*arguments: Any) -> Any:
            calls.append(arguments)
            if isinstance(result, BaseException):
                raise result
            return result

        stand_in = ModuleType(module)
        setattr(stand_in, name, function)
        monkeypatch.setitem(sys.modules, module, stand_in)
        return calls

    return install


def test_train_hands_over_the_recipe_and_the_directory(recipe: str, fake: Fake) -> None:
    calls = fake("aapa.engine.trainer", "train")
    assert cli.main(["train", recipe, "--stages.sft.steps", "20", "--seed=7"]) == 0
    ((given, output),) = calls
    assert isinstance(given, Recipe)
    assert (given.stages[0].steps, given.seed, output) == (20, 7, Path("runs/small"))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "r.toml", "--output", "there", "--seed", "7"],
        ["train", "--seed", "7", "r.toml", "--output=there"],
        ["train", "--output", "there", "--seed=7", "r.toml"],
    ],
)
def test_words_may_come_in_any_order(recipe: str, fake: Fake, words: list[str]) -> None:
    calls = fake("aapa.engine.trainer", "train")
    assert cli.main(words) == 0
    assert (calls[0][0].seed, calls[0][1]) == (7, Path("there"))


def test_check_trains_nothing(recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake("aapa.engine.trainer", "train")
    assert cli.main(["train", recipe, "--check"]) == 0
    assert calls == []
    assert capsys.readouterr().out == f"r.toml: ok, 1 stage, run directory {Path('runs/small')}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("data: expected rows, got none"), 2, "aapa: data: expected rows, got none\n"),
        (
            ValueError("backend: expected one of auto, got 'x'"),
            2,
            "aapa: backend: expected one of auto, got 'x'\n",
        ),
        (
            ValueError("runs/a b/metrics.jsonl:3: expected JSON, got '{'"),
            2,
            "aapa: runs/a b/metrics.jsonl:3: expected JSON, got '{'\n",
        ),
        (Interrupted("saved at step 7"), 3, "aapa: interrupted: saved at step 7\n"),
        (TrainingFault("loss is nan"), 4, "aapa: training fault: loss is nan\n"),
        (KeyboardInterrupt(), 1, "aapa: interrupted; what was saved before stays\n"),
    ],
)
def test_exit_codes(
    recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    fake("aapa.engine.trainer", "train", error)
    assert cli.main(["train", recipe]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        ValueError("boom"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "boom"),
        AssertionError("boom"),
    ],
)
def test_anything_else_shows_where_it_came_from(
    recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    fake("aapa.engine.trainer", "train", error)
    assert cli.main(["train", recipe]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "boom" in printed


def test_a_bad_recipe_names_file_and_field(recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake("aapa.engine.trainer", "train")
    Path(recipe).write_text(RECIPE.replace("steps = 3", "steps = 0\nmystery = 1"))
    assert cli.main(["train", recipe]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "aapa: r.toml: stages.0.steps: expected a number of at least 1, got 0"
    assert second.startswith("aapa: r.toml: stages.0.mystery: expected one of name, data, steps, ")
    assert second.endswith(", rewards, objective, got 'mystery'")
    assert calls == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["train"],
        ["train", "missing.toml"],
        ["train", "r.toml", "extra.toml"],
        ["train", "r.toml", "--sed", "1"],
        ["train", "r.toml", "--seed"],
        ["demo", "--seeds", "x"],
        ["demo", "--ful"],
        ["report"],
        ["report", "run", "--unknown"],
    ],
)
def test_bad_usage_is_exit_code_2(recipe: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err


def test_ranks_say_who_they_are(
    recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    fake("aapa.engine.trainer", "train", TrainingFault("loss is nan"))
    assert cli.main(["train", recipe]) == 4
    assert capsys.readouterr().err == "aapa: [rank 3] training fault: loss is nan\n"


def test_demo(recipe: str, fake: Fake) -> None:
    calls = fake("aapa.engine.demo", "run_demo")
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--full", "--output", "there", "--seeds", "0", "2"]) == 0
    assert calls == [(Path("runs/demo"), False, None), (Path("there"), True, [0, 2])]


def test_report(recipe: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake("aapa.engine.report", "write_report", Path("x/report.html"))
    assert cli.main(["report", "one", "two", "--output", "page.html"]) == 0
    assert cli.main(["report", "one"]) == 0
    assert calls == [([Path("one"), Path("two")], Path("page.html")), ([Path("one")], None)]
    assert capsys.readouterr().out == f"{Path('x/report.html')}\n" * 2


def test_modules_in_the_current_directory_can_be_named(recipe: str, fake: Fake, tmp_path: Path) -> None:
    calls = fake("aapa.engine.trainer", "train")
    (tmp_path / "my_rewards_for_cli_test.py").write_text("def length(prompts, completions, **columns): ...\n")
    words = ["--stages.sft.rewards", '[{ function = "my_rewards_for_cli_test:length" }]']
    words += ["--stages.sft.objective.kind", "grpo"]
    assert cli.main(["train", recipe, *words]) == 0
    assert calls[0][0].stages[0].rewards[0].function == "my_rewards_for_cli_test:length"
    assert sys.path[-1] == str(tmp_path)


def test_help_of_train_is_a_readable_reference_without_torch() -> None:
    code = (
        "import sys\nfrom aapa.engine.cli import main\ncode = main(['train', '--help'])\n"
        "print(code, {'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    *page, last = result.stdout.splitlines()
    assert last == "0 set()", result.stderr
    text = "\n".join(page)
    for part in (
        "usage: aapa train RECIPE",
        "--check",
        "[model]",
        "hidden_size = 160",
        "[stages.objective.anchor]",
    ):
        assert part in text
    assert "hidden_size = 160                 Width of the residual stream. (≥ 1)" in text
    assert max(map(len, page)) <= 110


def test_help_lists_only_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    commands = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "}
    assert commands == {"train", "eval", "demo", "discriminator", "report", "convert", "plan"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"aapa {aapa.__version__}\n"


def test_a_terminal_that_lacks_a_letter_is_no_error() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "aapa.engine", "train", "--help"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"hidden_size = 160" in result.stdout
