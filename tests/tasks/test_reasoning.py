"""The reasoning task: splits, answers and what does not count as one, corpus, tokenizer, options."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aapa.engine.examples import Example
from aapa.engine.tasks import load_task
from aapa.engine.tasks.reasoning import problems as problems_module
from aapa.engine.tasks.reasoning.answers import extract, is_right
from aapa.engine.tasks.reasoning.problems import SOURCES, Problem, problems
from aapa.engine.tasks.reasoning.rewards import answer_reward, mention_reward
from aapa.engine.tasks.reasoning.task import Reasoning

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"train_size": 600, "dev_size": 80, "test_size": 200, "held_out_size": 120, "corpus_size": 500}
LIMITS = {"chain_sum": 9, "basic_arithmetic": 9, "gcd": 60, "lcm": 30}
# Changes with the data, so with a version of reasoning-gym that draws differently: a line in CHANGELOG.
FINGERPRINT = "9fc1e2117dd12ac02b74e5957e4c48d489e686d2cbd95bca076571713ad35165"


@pytest.fixture(scope="module")
def task() -> Reasoning:
    return Reasoning(**SIZES)


@pytest.fixture(scope="module")
def tokenizer(task: Reasoning) -> PreTrainedTokenizerFast:
    return task.tokenizer()


def problem_of(example: Example) -> Problem:
    columns = example.columns
    return Problem(columns["dataset"], example.prompt.removesuffix("\n\n"), columns["given"], columns["answer"])


def columns_of(examples: list[Example]) -> dict[str, list[Any]]:
    return {name: [example.columns[name] for example in examples] for name in ("dataset", "given", "answer")}


def test_splits(task: Reasoning) -> None:
    seen: dict[str, str] = {}
    for split in task.sizes:
        examples = task.examples(split)
        assert len(examples) == SIZES[f"{split}_size"] == len({example.prompt for example in examples})
        assert [example.id for example in examples] == list(range(len(examples)))
        for example in examples:
            # Also problems that differ in the order of their numbers or in a needless parenthesis.
            assert seen.setdefault(problem_of(example).key, split) == split
            larger = max(map(abs, problem_of(example).numbers)) > LIMITS[example.columns["dataset"]]
            assert larger is (split == "held_out")
        counts = Counter(example.columns["dataset"] for example in examples)
        assert set(counts) == set(SOURCES)
        assert min(counts.values()) > 0.12 * len(examples)


def test_keys_see_through_order_and_parentheses() -> None:
    def key(dataset: str, given: str) -> str:
        return Problem(dataset, "", given, "").key

    assert key("gcd", "4, 6") == key("gcd", "6, 4") != key("lcm", "4, 6")
    assert key("basic_arithmetic", "( 5 - 3 )") == key("basic_arithmetic", "5 - 3") == key("chain_sum", "5 - 3")
    assert key("basic_arithmetic", "5 - ( 3 - 1 )") != key("basic_arithmetic", "5 - 3 - 1")


def test_splits_are_disjoint_across_seeds(task: Reasoning) -> None:
    trained = {problem_of(example).key for example in task.examples("train")}
    other = Reasoning(**{**SIZES, "seed": 1})
    for split in ("dev", "test"):
        found = {problem_of(example).key for example in other.examples(split)}
        assert not trained & found
        assert found != {problem_of(example).key for example in task.examples(split)}


def test_splits_are_equally_distributed(task: Reasoning) -> None:
    ours, theirs = task.examples("test"), task.examples("train")
    for dataset in SOURCES:
        shares = [sum(e.columns["dataset"] == dataset for e in examples) / len(examples) for examples in (ours, theirs)]
        assert abs(shares[0] - shares[1]) < 4 * math.sqrt(0.25 * 0.75 * (1 / len(ours) + 1 / len(theirs)))


def test_sizes_do_not_touch_other_splits(task: Reasoning) -> None:
    small = Reasoning(train_size=7, dev_size=50, test_size=31, held_out_size=9)
    for split, size in {"train": 7, "dev": 50, "test": 31, "held_out": 9}.items():
        assert small.examples(split) == task.examples(split)[:size]


def test_data_never_change(task: Reasoning) -> None:
    rows = [[e.id, e.prompt, e.experts, e.columns] for split in task.sizes for e in task.examples(split)]
    assert hashlib.sha256(json.dumps([rows, task.corpus()]).encode()).hexdigest() == FINGERPRINT


def test_corpus(task: Reasoning) -> None:
    corpus = task.corpus()
    evaluated = {x for split in ("dev", "test", "held_out") for e in task.examples(split) for x in e.experts}
    assert not evaluated & set(corpus)
    solutions = sum("Answer: " in text for text in corpus)
    assert abs(solutions / len(corpus) - 0.7) < 4 * math.sqrt(0.7 * 0.3 / len(corpus))
    assert not evaluated & {text for example in task.examples("train") for text in example.experts}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 12", "12"),
        ("So.\nAnswer: -12", "-12"),
        ("Answer:0 ", "0"),
        ("Answer: 12\nAnswer: 13", "13"),
        ("Answer: 12\nThat is all.", "12"),
        ("", None),
        ("12", None),
        ("The Answer: 12", None),
        ("answer: 12", None),
        ("Answer: 12\nAnswer: no", None),
        ("Answer: 12.", None),
        ("Answer: 12 13", None),
        ("Answer: +12", None),
        ("Answer: 012", None),
        ("Answer: -0", None),
        ("Answer: 1_2", None),
        ("Answer: 1,2", None),
        ("Answer: 12.0", None),
        ("Answer: 1e1", None),
        ("Answer: １２", None),
        ("Answer: ١٢", None),
        ("Answer:\n12", None),
        ("Answer:", None),
    ],
)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize("dataset", SOURCES)
def test_only_the_right_answer_is_paid(dataset: str) -> None:
    assert is_right("Thinking.\nAnswer: 12", dataset, "12")
    assert is_right("Answer: -4", dataset, "-4")
    # The package gives parts of the credit for the first few, and all of it for some of the others.
    junk = (
        "112",
        "12 12",
        "the answer is 12",
        "1_2",
        "1,2",
        "１２",
        "012",
        "+12",
        "12.0",
        "1.2e1",
        "-12",
        "13",
        "",
        "NaN",
    )
    assert not any(is_right(f"Answer: {answer}", dataset, "12") for answer in junk)


def test_junk_is_not_paid(task: Reasoning) -> None:
    examples = [example for split in ("test", "held_out") for example in task.examples(split)]
    finished = [True] * len(examples)
    for junk in ("", "\n", "x(/;=" * 9, "Answer: " * 20, "Answer:\n" * 20, "Start with 1.\n" * 9):
        verdicts = task.judge(examples, [junk] * len(examples), finished)
        assert sum(verdicts["constraints"]) == sum(verdicts["in_language"]) == 0
    echoed = task.judge(examples, [example.prompt for example in examples], finished)
    assert sum(echoed["constraints"]) == sum(echoed["in_language"]) == 0
    everything = "\n".join(map(str, range(-999, 5000)))
    verdicts = task.judge(examples, [everything] * len(examples), finished)
    assert sum(verdicts["proxy"]) > 0.95 * len(examples)
    assert sum(verdicts["constraints"]) == sum(verdicts["in_language"]) == 0
    # One guess for all is right as often as that answer comes up.
    guessed = task.judge(examples, ["Answer: 1"] * len(examples), finished)
    assert sum(guessed["constraints"]) == sum(example.columns["answer"] == "1" for example in examples)
    assert sum(guessed["in_language"]) == 0


def test_rewards_agree_with_the_judge(task: Reasoning) -> None:
    examples = task.examples("dev")
    completions = [
        (e.experts[0], e.experts[0][:-1], f"Answer: {e.columns['answer']}", "12.")[e.id % 4] for e in examples
    ]
    finished = [example.id % 3 != 0 for example in examples]
    prompts, columns = [example.prompt for example in examples], columns_of(examples)
    verdicts = task.judge(examples, completions, finished)
    assert answer_reward(prompts, completions, finished=finished, **columns) == verdicts["constraints"]
    assert mention_reward(prompts, completions, finished=finished, **columns) == verdicts["proxy"]
    for verdict in verdicts.values():
        assert 0 < sum(verdict) < len(examples)
    with pytest.raises(ValueError, match="shorter"):
        task.judge(examples[:2], completions[:1], [True] * 2)


def test_tokenizer(task: Reasoning, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    examples = [example for split in task.sizes for example in task.examples(split)]
    texts = sorted({*(text for e in examples for text in (e.prompt, *e.experts)), *task.corpus()})
    rows = {text: row.ids for text, row in zip(texts, tokenizer.backend_tokenizer.encode_batch(texts), strict=True)}
    assert tokenizer.backend_tokenizer.decode_batch(list(rows.values()), skip_special_tokens=False) == texts
    lengths = []
    for example in examples:
        responses = [len(rows[text]) + 1 for text in example.experts]
        assert len(rows[example.prompt]) + max(responses) <= 256
        lengths += responses
        together = tokenizer.backend_tokenizer.encode(example.prompt + example.experts[0]).ids
        assert together == rows[example.prompt] + rows[example.experts[0]]
    # The recipe generates at most 128 tokens: nearly every expert must fit.
    assert sum(length > 128 for length in lengths) < 0.01 * len(lengths)
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (256, 0, 1)
    for token in tokenizer.get_vocab().keys() - {"<pad>", "<eos>"}:
        assert len(token) == 1 or not set(token) & set("0123456789Ċ"), token
    other = Reasoning(seed=5, datasets=["gcd"], max_length=99).tokenizer()
    assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert other.model_max_length == 99
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 256}))
    assert AutoTokenizer.from_pretrained(tmp_path)(texts[:50])["input_ids"] == [rows[text] for text in texts[:50]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, r"^train_size: expected an integer of at least 1, got 0"),
        ({"seed": "1"}, r"^seed: expected an integer of at least 0, got '1'"),
        ({"datasets": "gcd"}, r"^datasets: expected a list of different names, got 'gcd'"),
        ({"datasets": []}, r"^datasets: expected a list of different names, got \[\]"),
        ({"datasets": [["gcd"]]}, r"^datasets: expected a list of different names, got \[\['gcd'\]\]"),
        ({"datasets": ["gcd", "gcd"]}, r"^datasets: expected a list of different names"),
        ({"datasets": ["sudoku"]}, r"^datasets: expected one of chain_sum, .*, got 'sudoku'"),
        ({"dataset": "gcd"}, r"^data\.options: expected keywords of reasoning \(seed, .*, got \['dataset'\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("reasoning", options)


def test_some_datasets_only() -> None:
    task = load_task("reasoning", {"datasets": ["gcd", "lcm"], "train_size": 40, "corpus_size": 20})
    assert {example.columns["dataset"] for example in task.examples("train")} == {"gcd", "lcm"}


def test_unknown_and_exhausted_splits_are_refused(task: Reasoning, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^split: expected one of train, dev, test, held_out, got 'validation'"):
        task.examples("validation")
    monkeypatch.setattr("aapa.engine.tasks.reasoning.task._PATIENCE", 30)
    with pytest.raises(ValueError, match=r"^dev_size: expected at most about \d+ .*, got 5000$"):
        Reasoning(dev_size=5000, datasets=["lcm"]).examples("dev")


def test_problems_are_the_packages_own() -> None:
    for dataset in SOURCES:
        found = next(problems(dataset, "here"))
        assert found == next(problems(dataset, "here")) != next(problems(dataset, "there"))
        package = problems_module.package().create_dataset(dataset)
        assert package.score_answer(found.answer, {"answer": found.answer, "metadata": {}}) == 1


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Importing reasoning-gym fails for the lack of the module that the test names in `missing`."""
    state = {"missing": "reasoning_gym"}

    def refuse(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {state['missing']!r}", name=state["missing"])

    monkeypatch.setattr(importlib, "import_module", refuse)
    problems_module.package.cache_clear()
    yield state
    problems_module.package.cache_clear()


def test_a_missing_package_is_named(without_package: dict[str, str]) -> None:
    message = r"^data\.task: expected the package reasoning-gym .*pip install 'aapa\[reasoning\]'$"
    with pytest.raises(ValueError, match=message):
        Reasoning()
    # A reward worker builds no task.
    with pytest.raises(ValueError, match=message):
        is_right("Answer: 3", "chain_sum of no cache", "3")
    without_package["missing"] = "sympy"
    with pytest.raises(ModuleNotFoundError, match="sympy"):
        Reasoning()


def test_nobody_else_loads_the_package() -> None:
    program = (
        "import sys\n"
        "from aapa.engine.tasks import load_task\n"
        "import aapa.engine.tasks.reasoning.rewards, aapa.engine.tasks.reasoning.task\n"
        "load_task('mini-if', {'train_size': 2}).examples('train')\n"
        "print('reasoning_gym' in sys.modules)\n"
        "task = load_task('reasoning', {'train_size': 3, 'corpus_size': 3})\n"
        "task.judge(task.examples('train'), ['Answer: 1'] * 3, [True] * 3)\n"
        "task.corpus()\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False", "[]"]
