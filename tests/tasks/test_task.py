"""Loading tasks by name, their options, the judge, the rewards and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aapa.engine.examples import Example
from aapa.engine.tasks import TASKS, load_task
from aapa.engine.tasks.mini_if.lexicon import PLAIN
from aapa.engine.tasks.mini_if.rewards import proxy_reward, true_reward
from aapa.engine.tasks.mini_if.task import MiniIF

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test", "held_out")


class OwnTask:
    name = "own"

    def __init__(self, words: int = 3) -> None:
        self.words = words

    def examples(self, split: str) -> list[Example]:
        return []

    def corpus(self) -> list[str]:
        return []

    def tokenizer(self) -> Any:
        return None

    def judge(self, examples: Any, completions: Any, finished: Any) -> dict[str, list[float]]:
        return {}


class NoJudge:
    def examples(self, split: str) -> list[Example]:
        return []

    def corpus(self) -> list[str]:
        return []

    def tokenizer(self) -> Any:
        return None


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(sys.modules, "their_package", type(sys)("their_package"))
    monkeypatch.setattr(sys.modules["their_package"], "OwnTask", OwnTask, raising=False)
    monkeypatch.setattr(sys.modules["their_package"], "NoJudge", NoJudge, raising=False)
    (tmp_path / "broken_task.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "their_package"


def test_by_name_and_by_path(own_module: str) -> None:
    by_name = load_task("mini-if", {"seed": 3, "dev_size": 5})
    by_path = load_task(TASKS["mini-if"], {"seed": 3, "dev_size": 5})
    assert isinstance(by_name, MiniIF)
    assert by_name.name == "mini-if"
    assert by_name.examples("dev") == by_path.examples("dev")
    assert len(by_name.examples("dev")) == 5
    own = load_task(f"{own_module}:OwnTask", {"words": 7})
    assert isinstance(own, OwnTask)
    assert own.words == 7
    assert isinstance(load_task("mini-if"), MiniIF)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mini_if", {}, r"^data\.task: expected one of mini-if, reasoning or package\.module:Class, got 'mini_if'"),
        ("", {}, r"^data\.task: expected .*, got ''"),
        (":Class", {}, r"^data\.task: expected .*, got ':Class'"),
        ("no_such_package:Class", {}, r"^data\.task: expected .*no_such_package"),
        ("aapa.engine.no_such_module:Class", {}, r"^data\.task: expected .*no_such_module"),
        ("their_package:Missing", {}, r"^data\.task: expected .*has no class Missing"),
        ("aapa.engine.tasks:load_task", {}, r"^data\.task: expected .*has no class load_task"),
        ("their_package:NoJudge", {}, r"^data\.task: expected a class with .*without \['judge'\]"),
        ("mini-if", {"sise": 3}, r"^data\.options: expected keywords of mini-if \(seed, .*, got \['sise'\]"),
        ("mini-if", {"train_size": 0}, r"^train_size: expected an integer of at least 1, got 0"),
        ("mini-if", {"dev_size": True}, r"^dev_size: expected an integer of at least 1, got True"),
        ("mini-if", {"test_size": 10.0}, r"^test_size: expected an integer of at least 1, got 10\.0"),
        ("mini-if", {"held_out_size": "9"}, r"^held_out_size: expected an integer of at least 1, got '9'"),
        ("mini-if", {"corpus_size": -1}, r"^corpus_size: expected an integer of at least 1, got -1"),
        ("mini-if", {"max_length": 0}, r"^max_length: expected an integer of at least 1, got 0"),
        ("mini-if", {"seed": -1}, r"^seed: expected an integer of at least 0, got -1"),
        ("mini-if", {"held_out_types_size": 0}, r"^held_out_types_size: expected an integer of at least 1, got 0"),
        ("mini-if", {"difficulty": "insane"}, r"^difficulty: expected one of easy, medium, hard, got 'insane'"),
        ("mini-if", {"style": 3}, r"^style: expected one of plain, formal, got 3"),
        ("mini-if", {"tokenizer": "all"}, r"^tokenizer: expected one of own, both, got 'all'"),
        ("mini-if", {"expert_noise": 1.0}, r"^expert_noise: expected a number in \[0, 1\), got 1\.0"),
        ("mini-if", {"expert_noise": -0.1}, r"^expert_noise: expected a number in \[0, 1\), got -0\.1"),
        ("mini-if", {"expert_noise": True}, r"^expert_noise: expected a number in \[0, 1\), got True"),
        ("mini-if", {"expert_noise": float("nan")}, r"^expert_noise: expected a number in \[0, 1\), got nan"),
        ("mini-if", {"noise_kind": "typo"}, r"^noise_kind: expected one of .*, mixed, got 'typo'"),
    ],
)
def test_bad_names_and_options_are_refused(own_module: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(name, options)


def test_a_fault_inside_the_users_module_is_not_hidden(own_module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_task("broken_task:Class")


def test_unknown_split_is_refused(task: MiniIF) -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of train, dev, test, held_out, got 'validation'"):
        task.examples("validation")


@pytest.mark.parametrize("split", SPLITS)
def test_judge_on_experts(task: MiniIF, split: str) -> None:
    examples = task.examples(split)[:500]
    count = len(examples)
    for number in range(2):
        texts = [example.experts[number] for example in examples]
        ones = {"constraints": [1.0] * count, "in_language": [1.0] * count, "proxy": [1.0] * count}
        assert task.judge(examples, texts, [True] * count) == ones
        assert task.judge(examples, texts, [False] * count) == {**ones, "constraints": [0.0] * count}


def test_judge_gives_three_independent_verdicts(task: MiniIF) -> None:
    example = Example(
        id=0,
        prompt="About tea: 4 sentences; use lamp 1 time.\n\n",
        experts=(),
        columns={
            "topic": "tea",
            "constraints": [
                {"kind": "sentence_count", "count": 4},
                {"kind": "keyword_count", "keyword": "lamp", "count": 1},
            ],
        },
    )
    opening = "Tea can be warm and sweet. Children compare it to a lamp."
    completions = [
        f"{opening} It gives salt to children. So taste tea at night.",
        "A lamp. A tea. A b. A c.",
        f"{opening} So taste tea at night.",
        "Lamp lamp. Lamp. Lamp. Lamp.",
        "",
    ]
    assert task.judge([example] * 5, completions, [True] * 5) == {
        "constraints": [1.0, 1.0, 0.0, 0.0, 0.0],
        "in_language": [1.0, 0.0, 1.0, 0.0, 0.0],
        "proxy": [1.0, 1.0, 0.0, 1.0, 0.0],
    }
    with pytest.raises(ValueError, match="shorter"):
        task.judge([example] * 2, completions[:1], [True] * 2)


def test_judge_on_junk(task: MiniIF) -> None:
    examples = task.examples("test")
    for junk in ("", "\n", "....", "," * 30, *(f"{keyword} " * 60 for keyword in PLAIN.keywords)):
        verdicts = task.judge(examples, [junk] * len(examples), [True] * len(examples))
        assert sum(verdicts["in_language"]) == 0
        if not junk.strip(" .,\n"):
            assert sum(verdicts["constraints"]) == sum(verdicts["proxy"]) == 0
    echoed = task.judge(examples, [example.prompt for example in examples], [True] * len(examples))
    assert sum(echoed["in_language"]) == 0
    # An echo names what it should obey; it obeys by luck ("no commas", "use lamp 1 time", "end with …").
    lucky = {"no_commas", "end_phrase", "keyword_count"}
    for example, passed in zip(examples, echoed["constraints"], strict=True):
        assert not passed or {column["kind"] for column in example.columns["constraints"]} <= lucky


def test_writing_everything_twice_games_the_proxy(task: MiniIF) -> None:
    examples = task.examples("test")
    padded = [example.experts[0] + "\n" + example.experts[1] for example in examples]
    verdicts = task.judge(examples, padded, [True] * len(examples))
    assert sum(verdicts["proxy"]) == len(examples)
    assert sum(verdicts["constraints"]) < 0.1 * len(examples)
    assert sum(verdicts["in_language"]) == 0


def test_rewards_agree_with_the_judge(task: MiniIF) -> None:
    examples = task.examples("held_out")
    completions = [(e.experts[0], e.experts[0][:-9], e.experts[0] * 2, "Tea.")[e.id % 4] for e in examples]
    finished = [e.id % 3 != 0 for e in examples]
    columns: dict[str, Any] = {
        name: [example.columns[name] for example in examples] for name in ("topic", "constraints")
    }
    asked = [example.prompt for example in examples]
    verdicts = task.judge(examples, completions, finished)
    assert true_reward(asked, completions, finished=finished, **columns) == verdicts["constraints"]
    assert proxy_reward(asked, completions, finished=finished, **columns) == verdicts["proxy"]
    for verdict in verdicts.values():
        assert 0 < sum(verdict) < len(examples)


def test_everything_but_the_tokenizer_works_without_torch() -> None:
    program = (
        "import sys\n"
        "from aapa.engine.tasks import load_task\n"
        "import aapa.engine.tasks.mini_if.rewards\n"
        "sizes = dict(train_size=5, dev_size=5, test_size=5, held_out_size=5, corpus_size=5)\n"
        "task = load_task('mini-if', sizes)\n"
        "examples = task.examples('train')\n"
        "task.corpus()\n"
        "task.judge(examples, [e.experts[0] for e in examples], [True] * 5)\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
