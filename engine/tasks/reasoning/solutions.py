"""Worked solutions: the ways to solve a problem step by step, written as an expert and read back exactly.

A way is a list of steps, and a step is a few sentences that say the same. A solution takes one way and one sentence
for each of its steps, one to a line, and closes with the line `Answer: N`. The ways of a problem are enumerated, so
the writer and the parser read the same enumeration, and whatever the parser accepts is right in every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from random import Random
from typing import Final

from aapa.engine.tasks.mini_if.draws import pick
from aapa.engine.tasks.reasoning.expressions import Expression, Number, Operation, compute, parse, reduce_once
from aapa.engine.tasks.reasoning.problems import Problem

ANSWER: Final = "Answer: "
# What a step may be called, one of which is written.
Step = tuple[str, ...]
Way = tuple[Step, ...]


@lru_cache(maxsize=4096)
def ways(problem: Problem) -> tuple[Way, ...]:
    """Enumerate the ways to solve a problem, without the line of the answer; none occurs twice."""
    if problem.dataset == "chain_sum":
        found = _chain_ways(parse(problem.given))
    elif problem.dataset == "basic_arithmetic":
        expression = parse(problem.given)
        found = [_reducing(expression, from_right=from_right) for from_right in (False, True)]
        found.append(_listing(expression))
    else:
        larger, smaller = sorted(problem.numbers, reverse=True)
        solve = _gcd_ways if problem.dataset == "gcd" else _lcm_ways
        found = solve(larger, smaller)
    return tuple(dict.fromkeys(tuple(way) for way in found))


def write_solution(problem: Problem, rng: Random) -> str:
    """Write one solution: a way at random, and a sentence at random for each of its steps."""
    way = pick(rng, ways(problem))
    return "\n".join([*(pick(rng, step) for step in way), f"{ANSWER}{problem.answer}"])


def is_solution(text: str, problem: Problem) -> bool:
    """Say whether an expert could have written `text` for the problem."""
    *lines, last = text.split("\n")
    return last == f"{ANSWER}{problem.answer}" and any(
        len(lines) == len(way) and all(line in step for line, step in zip(lines, way, strict=True))
        for way in ways(problem)
    )


def _operation(left: int, symbol: str, right: int) -> Step:
    done = f"{left} {symbol} {right} = {compute(left, symbol, right)}"
    verb = {"+": "Add", "-": "Subtract"}[symbol]
    return f"{done}.", f"{verb} {right}: {done}.", f"Then {done}."


def _running(numbers: Sequence[int], symbols: Sequence[str]) -> list[Step]:
    total, steps = numbers[0], []
    for symbol, number in zip(symbols, numbers[1:], strict=True):
        steps.append(_operation(total, symbol, number))
        total = compute(total, symbol, number)
    return steps


def _chain_ways(expression: Expression) -> list[list[Step]]:
    """From left to right; and, where it differs, what is added and what is subtracted each by itself."""
    numbers, symbols = _flatten(expression)
    start = (f"Start with {numbers[0]}.", f"The first number is {numbers[0]}.", f"Begin at {numbers[0]}.")
    found = [[start, *_running(numbers, symbols)]]
    added = [numbers[0], *(n for symbol, n in zip(symbols, numbers[1:], strict=True) if symbol == "+")]
    taken = [n for symbol, n in zip(symbols, numbers[1:], strict=True) if symbol == "-"]
    if taken and len(numbers) > 2:
        found.append(
            [
                *_total("added", added),
                *_total("subtracted", taken),
                _operation(sum(added), "-", sum(taken)),
            ]
        )
    return found


def _total(what: str, numbers: Sequence[int]) -> list[Step]:
    listed = " and ".join(map(str, numbers))
    first = (f"The numbers {what} are {listed}.", f"What is {what}: {listed}.")
    return [first, *_running(numbers, ["+"] * (len(numbers) - 1))]


def _flatten(expression: Expression) -> tuple[list[int], list[str]]:
    if isinstance(expression, Number):
        return [expression.value], []
    assert isinstance(expression, Operation) and isinstance(expression.right, Number)
    numbers, symbols = _flatten(expression.left)
    return [*numbers, expression.right.value], [*symbols, expression.symbol]


def _reducing(expression: Expression, *, from_right: bool) -> list[Step]:
    """Work out one operation after the other, and write down what is left."""
    steps: list[Step] = [(f"We need {expression}.", f"The task is {expression}.", f"Work out {expression}.")]
    while not isinstance(expression, Number):
        expression, done, value = reduce_once(expression, from_right=from_right)
        if isinstance(expression, Number):
            steps.append((f"{done} = {value}.", f"So {done} = {value}.", f"At last {done} = {value}."))
        else:
            rest = str(expression)
            steps.append(
                (
                    f"{done} = {value}, so {rest}.",
                    f"{done} = {value}, which leaves {rest}.",
                    f"{done} = {value} gives {rest}.",
                )
            )
    return steps


def _listing(expression: Expression) -> list[Step]:
    """Work out one operation after the other, and keep in mind what is left."""
    steps: list[Step] = [(f"Solve {expression} from the inside.", f"Take the parts of {expression} in turn.")]
    while not isinstance(expression, Number):
        expression, done, value = reduce_once(expression, from_right=False)
        steps.append((f"{done} = {value}.", f"Here {done} = {value}.", f"This part is {done} = {value}."))
    return steps


def _euclid(larger: int, smaller: int) -> tuple[list[Step], int]:
    steps: list[Step] = []
    while smaller:
        quotient, rest = divmod(larger, smaller)
        done = f"{larger} = {quotient} * {smaller} + {rest}"
        steps.append((f"{done}.", f"Divide {larger} by {smaller}: {done}.", f"{'Next' if steps else 'First'} {done}."))
        larger, smaller = smaller, rest
    steps.append((f"Nothing remains, so the GCD is {larger}.", f"The last divisor is {larger}."))
    return steps, larger


def _factors(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found


def _product(factors: Sequence[int]) -> str:
    """Write a product with its value; a single number is its own."""
    listed = " * ".join(map(str, factors))
    return f"{listed} = {prod(factors)}" if len(factors) > 1 else listed


def _factorised(number: int) -> Step:
    listed = " * ".join(map(str, _factors(number)))
    done = f"{number} = {listed}" if len(_factors(number)) > 1 else f"{number} is prime"
    return f"{done}.", f"In primes, {done}."


def _gcd_ways(larger: int, smaller: int) -> list[list[Step]]:
    """Euclid's algorithm, and the common prime factors."""
    shared = sorted((Counter(_factors(larger)) & Counter(_factors(smaller))).elements())
    if shared:
        last: Step = (f"Both contain {_product(shared)}.", f"They share {_product(shared)}.")
    else:
        last = ("They share only 1.", "Both contain only 1.")
    steps, _ = _euclid(larger, smaller)
    return [steps, [_factorised(larger), _factorised(smaller), last]]


def _lcm_ways(larger: int, smaller: int) -> list[list[Step]]:
    """By the greatest common divisor, and by the prime factors that the larger number lacks."""
    steps, divisor = _euclid(larger, smaller)
    quotient = smaller // divisor
    product = f"{larger} * {quotient} = {larger * quotient}"
    by_divisor = [
        *steps,
        (f"{smaller} / {divisor} = {quotient}.", f"Then {smaller} / {divisor} = {quotient}."),
        (f"{product}.", f"So {product}."),
    ]
    lacking = sorted((Counter(_factors(smaller)) - Counter(_factors(larger))).elements())
    by_factors = [_factorised(larger), _factorised(smaller)]
    if lacking:
        by_factors.append((f"{larger} lacks {_product(lacking)}.", f"Missing from {larger} is {_product(lacking)}."))
        by_factors.append((f"{product}.", f"So {product}."))
    else:
        by_factors.append((f"{larger} lacks nothing.", f"Missing from {larger} is nothing."))
    return [by_divisor, by_factors]
