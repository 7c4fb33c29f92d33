"""How good a policy is on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from aapa.batch import Sequence
from aapa.engine.data import TokenizedExample
from aapa.engine.errors import UserError
from aapa.engine.metrics import Sample, ScoredSentence
from aapa.engine.rollout import Rollout, sample_seed
from aapa.engine.run import Run
from aapa.engine.scoring import Scorer
from aapa.engine.statistics import distinct_n, wilson_interval
from aapa.packing import pack

# Policies are compared at one budget of words, which each of them fills: distinct-2 falls as the sample grows.
WORD_BUDGET_PER_PROMPT = 12


@dataclass(frozen=True)
class Evaluation:
    """Figures of one policy on one split.

    Attributes:
        figures: pass_rate, pass_rate_low, pass_rate_high, in_language, true_quality, proxy_reward, length_ratio,
            distinct_2, truncated, expert_logprob (mean per token).
        samples: the first responses, with sentence scores where there is a discriminator.
    """

    split: str
    prompts: int
    figures: dict[str, float]
    samples: list[Sample]


def evaluate(
    run: Run, data: list[TokenizedExample], split: str, scorer: Scorer | None, stage: str, step: int
) -> Evaluation:
    """Sample one response per prompt and judge it; a collective, equal on all ranks.

    The rollout engine must hold the policy's current weights.
    """
    settings = run.recipe.evaluation
    share = run.mine(list(range(len(data))))
    mine = [data[i] for i in share]
    seeds = [sample_seed(settings.seed, split, example.example.id) for example in mine]
    rollouts = run.generate([e.prompt for e in mine], seeds, run.recipe.rollout.max_new_tokens, settings.temperature)
    texts = [run.text(rollout.response) for rollout in rollouts]
    verdicts = run.task.judge([e.example for e in mine], texts, [r.finished for r in rollouts])
    _check_verdicts(verdicts, len(texts))
    parts = run.parallel.gather_over_data(
        {
            "place": share,
            "text": texts,
            "length": [len(r.response) for r in rollouts],
            "truncated": [float(not r.finished) for r in rollouts],
            "expert_length": [len(e.experts[0]) for e in mine],
            "expert_logprob": _expert_logprobs(run, mine),
            **{f"verdict/{name}": values for name, values in verdicts.items()},
        }
    )
    columns = _in_order(parts)
    samples = _samples(run, mine[: settings.samples], rollouts, verdicts, scorer, stage, step)
    return Evaluation(split, len(data), _figures(columns), samples)


def _check_verdicts(verdicts: dict[str, list[float]], count: int) -> None:
    if "constraints" not in verdicts:
        raise UserError(f"data.task.judge: expected verdicts under 'constraints', got {sorted(verdicts)}")
    for name, values in verdicts.items():
        if len(values) != count or any(value not in (0, 1) for value in values):
            raise UserError(f"data.task.judge.{name}: expected {count} verdicts of 0 or 1, got {values[:8]} …")


def _in_order(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The replicas' columns as one, in the order of the data, so that no figure depends on how it was shared out."""
    places = [place for part in parts for place in part["place"]]
    order = sorted(range(len(places)), key=places.__getitem__)
    joined = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return {name: [values[i] for i in order] for name, values in joined.items()}


def _figures(columns: dict[str, list[Any]]) -> dict[str, float]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    passed = columns["verdict/constraints"]
    low, high = wilson_interval(int(sum(passed)), len(passed))
    tokens = sum(columns["expert_length"])
    figures = {
        "pass_rate": mean(passed),
        "pass_rate_low": low,
        "pass_rate_high": high,
        "length_ratio": sum(columns["length"]) / tokens,
        "distinct_2": distinct_n(columns["text"], 2, words=WORD_BUDGET_PER_PROMPT * len(passed)),
        "truncated": mean(columns["truncated"]),
        "expert_logprob": sum(columns["expert_logprob"]) / tokens,
    }
    if "verdict/in_language" in columns:
        in_language = columns["verdict/in_language"]
        figures["in_language"] = mean(in_language)
        figures["true_quality"] = mean([a * b for a, b in zip(passed, in_language, strict=True)])
    if "verdict/proxy" in columns:
        figures["proxy_reward"] = mean(columns["verdict/proxy"])
    return figures


def _expert_logprobs(run: Run, data: list[TokenizedExample]) -> list[float]:
    """Sum of the log-probs of each example's first expert response under the policy, at temperature 1."""
    sequences = [Sequence(torch.tensor(e.prompt), torch.tensor(e.experts[0]), "expert") for e in data]
    batches = pack(sequences, run.recipe.parallel.micro_batch_tokens)
    sums = [0.0] * len(data)
    for batch, (logprob_T, _) in zip(batches, run.policy.logprobs(batches), strict=True):
        for index, values in zip(batch.index_N, batch.responses(logprob_T), strict=True):
            sums[index] = float(values.double().sum())
    return sums


def _samples(
    run: Run,
    data: list[TokenizedExample],
    rollouts: list[Rollout],
    verdicts: dict[str, list[float]],
    scorer: Scorer | None,
    stage: str,
    step: int,
) -> list[Sample]:
    """The first responses with the calibrated score of each sentence."""
    if not data:
        return []
    sentences: list[tuple[ScoredSentence, ...]] = [()] * len(data)
    if scorer is not None:
        responses = [rollout.response for rollout in rollouts[: len(data)]]
        scores = scorer.score(data, responses)
        calibrated_S = scores.calibrated(3.0)
        for index, (response, cu) in enumerate(zip(responses, scores.cu_sents, strict=True)):
            values = scores.within(index, calibrated_S).tolist()
            kept = scores.kept[index].tolist()
            spans = zip(cu.tolist()[:-1], cu.tolist()[1:], values, kept, strict=True)
            sentences[index] = tuple(
                ScoredSentence(run.text(response[a:b]), value if scores.anchored[index] and judged else None)
                for a, b, value, judged in spans
            )
    return [
        Sample(
            stage=stage,
            step=step,
            prompt=example.example.prompt,
            response=run.text(rollouts[i].response),
            expert=example.example.experts[0],
            reward=verdicts["proxy"][i] if "proxy" in verdicts else None,
            passed=bool(verdicts["constraints"][i]),
            sentences=sentences[i],
        )
        for i, example in enumerate(data)
    ]
