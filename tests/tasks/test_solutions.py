"""Worked solutions: right in every step, read back exactly, and nothing else accepted."""

from __future__ import annotations

import itertools
import math
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.engine.examples import Example
from aapa.engine.tasks.reasoning.problems import SOURCES, Problem
from aapa.engine.tasks.reasoning.solutions import is_solution, ways, write_solution
from aapa.engine.tasks.reasoning.task import Reasoning

TASK = Reasoning(train_size=400, dev_size=60, test_size=60, held_out_size=200, corpus_size=300)
# What is compared may be part of a sentence: "Add 7: 12 + 7 = 19.", "They share 2 * 3 = 6."
EQUATION = re.compile(r"(?<![0-9*/+] )(-?\(*-?[0-9][0-9 ()+*/-]*) = (-?[0-9 *+]*[0-9])")


def value(text: str) -> float:
    return float(eval(text, {"__builtins__": {}}))


def right_equations(text: str) -> int:
    """Count the equations of a text; each of them holds by Python's own arithmetic."""
    found = EQUATION.findall(text)
    assert len(found) == text.count("="), text
    for left, right in found:
        assert value(left) == value(right), (left, right, text)
    return len(found)


def problem_of(example: Example) -> Problem:
    columns = example.columns
    return Problem(columns["dataset"], "", columns["given"], columns["answer"])


def all_solutions(problem: Problem) -> set[str]:
    last = f"Answer: {problem.answer}"
    return {"\n".join((*lines, last)) for way in ways(problem) for lines in itertools.product(*way)}


def truth(problem: Problem) -> int:
    """The answer by means that neither the package nor the solutions use."""
    if problem.dataset in ("gcd", "lcm"):
        return (math.gcd if problem.dataset == "gcd" else math.lcm)(*problem.numbers)
    return int(value(problem.given))


@pytest.mark.parametrize("split", ["train", "dev", "test", "held_out"])
def test_experts_are_right(split: str) -> None:
    examples = TASK.examples(split)
    for example in examples:
        problem = problem_of(example)
        assert example.prompt.endswith("\n\n") and problem.given in example.prompt
        assert problem.answer == str(truth(problem)), example
        assert len(set(example.experts)) == 2
        for text in example.experts:
            lines = text.split("\n")
            assert lines[-1] == f"Answer: {problem.answer}"
            assert len(lines) >= 3
            assert all(line.endswith(".") for line in lines[:-1])
            # A pair of primes needs no equation to show that it shares nothing.
            assert right_equations(text) or "is prime" in text
    for number in range(2):
        texts = [example.experts[number] for example in examples]
        ones, zeros = [1.0] * len(texts), [0.0] * len(texts)
        assert TASK.judge(examples, texts, [True] * len(texts)) == {
            "constraints": ones,
            "in_language": ones,
            "proxy": ones,
        }
        assert TASK.judge(examples, texts, [False] * len(texts))["constraints"] == zeros


def test_lines_of_the_corpus_are_right() -> None:
    assert sum(right_equations(text) for text in TASK.corpus()) > 300


@pytest.mark.parametrize("dataset", SOURCES)
def test_each_dataset_has_different_ways(dataset: str) -> None:
    counts = [len(ways(problem_of(e))) for e in TASK.examples("train") if e.columns["dataset"] == dataset]
    assert set(counts) <= {1, 2}
    assert counts.count(2) > 0.3 * len(counts)
    solved = [ways(problem_of(e)) for e in TASK.examples("train") if e.columns["dataset"] == dataset]
    assert all(len(set(found)) == len(found) for found in solved)


small = [problem for problem in map(problem_of, TASK.examples("train")) if len(all_solutions(problem)) < 3000]


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), problem=st.sampled_from(small))
def test_reader_equals_the_enumeration_on_damaged_solutions(seed: int, problem: Problem) -> None:
    rng = Random(seed)
    text = write_solution(problem, rng)
    assert is_solution(text, problem)
    lines = text.split("\n")
    where, kind = rng.randrange(len(lines)), rng.randrange(7)
    if kind == 0:
        del lines[where]
    elif kind == 1:
        lines.insert(where, rng.choice(lines))
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        lines[where] = rng.choice([step for way in ways(problem) for options in way for step in options])
    elif kind == 4:
        lines[where] = re.sub("[0-9]", lambda found: rng.choice((found[0], str(rng.randrange(10)))), lines[where])
    elif kind == 5:
        lines[where] = lines[where] + rng.choice(("", " ", ".", "\n"))
    else:
        lines = write_solution(rng.choice(small), rng).split("\n")
    damaged = "\n".join(lines)
    assert is_solution(damaged, problem) == (damaged in all_solutions(problem))


@settings(deadline=None)
@given(text=st.text(max_size=60), problem=st.sampled_from(small))
def test_random_text_is_no_solution(text: str, problem: Problem) -> None:
    assert not is_solution(text, problem)


SUM = Problem("chain_sum", "", "12 + 7 - 4", "15")
OUTSIDE = {
    "empty": "",
    "only the answer": "Answer: 15",
    "no answer": "Start with 12.\n12 + 7 = 19.\n19 - 4 = 15.",
    "a wrong step": "Start with 12.\n12 + 7 = 18.\n19 - 4 = 15.\nAnswer: 15",
    "two errors that cancel": "Start with 12.\n12 + 7 = 18.\n18 - 3 = 15.\nAnswer: 15",
    "another answer": "Start with 12.\n12 + 7 = 19.\n19 - 4 = 15.\nAnswer: 16",
    "a step twice": "Start with 12.\n12 + 7 = 19.\n12 + 7 = 19.\n19 - 4 = 15.\nAnswer: 15",
    "goes on": "Start with 12.\n12 + 7 = 19.\n19 - 4 = 15.\nAnswer: 15\n",
    "two ways mixed": "Start with 12.\n12 + 7 = 19.\nWhat is subtracted: 4.\n19 - 4 = 15.\nAnswer: 15",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name: str) -> None:
    assert not is_solution(OUTSIDE[name], SUM)


def test_inside() -> None:
    assert is_solution("Start with 12.\nThen 12 + 7 = 19.\nSubtract 4: 19 - 4 = 15.\nAnswer: 15", SUM)
    both = "What is added: 12 and 7.\n12 + 7 = 19.\nThe numbers subtracted are 4.\n19 - 4 = 15.\nAnswer: 15"
    assert is_solution(both, SUM)
    assert not is_solution(both, Problem("chain_sum", "", "12 + 7 - 5", "14"))
