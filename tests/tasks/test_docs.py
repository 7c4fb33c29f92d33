"""What docs/tasks.md shows is real: the examples are the tasks' own, and the task and recipe of one's own run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aapa.engine.data import tokenize, tokenize_corpus
from aapa.engine.tasks import load_task
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.reasoning.task import Reasoning

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
SIZES = {"train_size": 10, "dev_size": 10, "test_size": 1, "held_out_size": 1, "corpus_size": 1}


def block(language: str, holding: str) -> str:
    (found,) = (text for name, text in BLOCKS if name == language and holding in text)
    return found


def test_the_examples_shown_are_real() -> None:
    tasks: list[MiniIF | Reasoning] = [
        MiniIF(style=style, difficulty=difficulty, **SIZES)
        for style in ("plain", "formal")
        for difficulty in ("easy", "medium", "hard")
    ]
    tasks.append(Reasoning(**SIZES))
    real = {f"{e.prompt}{expert}" for task in tasks for e in task.examples("dev") for expert in e.experts}
    shown = [text for name, text in BLOCKS if not name]
    assert len(shown) == 7
    noisy = MiniIF(expert_noise=0.5, noise_kind="style", **SIZES).examples("train")
    assert [text for text in shown if text not in real] == [noisy[2].experts[0]]
    assert noisy[2].prompt.strip() in PAGE


@pytest.mark.parametrize(("name", "task"), [("mini-if", MiniIF), ("reasoning", Reasoning)])
def test_the_options_shown_are_real(name: str, task: type) -> None:
    section = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    table = section.split("| option |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.split("\n")[2:]]
    shown = {
        option: default
        for options, defaults in rows
        for option, default in zip(re.findall(r"`(\w+)`", options), re.split(", (?=[0-9])", defaults), strict=True)
    }
    real = {key: value for key, value in (task.__init__.__kwdefaults__ or {}).items() if key != "datasets"}  # type: ignore[misc]
    assert {option: shown[option].strip('`"') for option in real} == {key: str(value) for key, value in real.items()}
    assert shown.keys() - real.keys() == ({"datasets"} if name == "reasoning" else set())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_task.py").write_text(block("python", "class Colors"))
    (tmp_path / "my_recipe.toml").write_text(block("toml", "my_task:Colors"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    return tmp_path


def test_a_task_of_ones_own_works(own: Path) -> None:
    task = load_task("my_task:Colors", {"seed": 3})
    tokenizer = task.tokenizer()
    prompts: set[str] = set()
    for split, size in {"train": 80, "dev": 10, "test": 10}.items():
        examples = task.examples(split)
        assert len(tokenize(examples, tokenizer, 64, split)) == size
        assert not prompts & {example.prompt for example in examples}
        prompts |= {example.prompt for example in examples}
        for number in range(2):
            texts = [example.experts[number] for example in examples]
            assert task.judge(examples, texts, [True] * size) == {"constraints": [1.0] * size}
            assert task.judge(examples, texts, [False] * size) == {"constraints": [0.0] * size}
        assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts
    assert len(tokenize_corpus(task.corpus(), tokenizer, 64)) == 160


def test_a_recipe_of_ones_own_is_valid(own: Path) -> None:
    table: dict[str, Any] = tomllib.loads((own / "my_recipe.toml").read_text())
    assert table["data"]["task"] == "my_task:Colors"
    words = [sys.executable, "-m", "aapa.engine", "train", "my_recipe.toml", "--check"]
    done = subprocess.run(words, cwd=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_recipe_of_ones_own_learns(own: Path) -> None:
    words = [sys.executable, "-m", "aapa.engine", "train", "my_recipe.toml"]
    done = subprocess.run(words, cwd=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rate = float(re.findall(r"colors after rl: pass rate ([0-9.]+)", done.stdout + done.stderr)[-1])
    assert rate > 0.5
