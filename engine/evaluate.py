"""How good a policy is on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from aapa.batch import Sequence
from aapa.engine.data import TokenizedExample
from aapa.engine.data_files import FileTask
from aapa.engine.errors import UserError
from aapa.engine.examples import Example
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
            distinct_2, truncated, expert_logprob (mean per token); reward and reward_failed with rows of one's own;
            those that need a judge, or experts, only where there are some.
        samples: the first responses, with sentence scores where there is a discriminator.
    """

    split: str
    prompts: int
    figures: dict[str, float]
    samples: list[Sample]


def evaluate(
    run: Run, data: Rows[TokenizedExample], split: str, scorer: Scorer | None, stage: str, step: int
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
    verdicts = run.parallel.from_leader(_judge(run, mine, texts, rollouts) if run.parallel.is_leader else None)
    _check_verdicts(run, verdicts, len(texts))
    parts = run.parallel.gather_over_data(
        {
            "place": share,
            "text": texts,
            "length": [len(r.response) for r in rollouts],
            "truncated": [float(not r.finished) for r in rollouts],
            "expert_length": [len(e.experts[0]) if e.experts else 0 for e in mine],
            "expert_logprob": _expert_logprobs(run, mine),
            **{f"verdict/{name}": values for name, values in verdicts.items()},
        }
    )
    columns = _in_order(parts)
    samples = _samples(run, mine[: settings.samples], rollouts, verdicts, scorer, stage, step)
    return Evaluation(split, len(data), _figures(columns), samples)


def _judge(run: Run, data: list[TokenizedExample], texts: list[str], rollouts: list[Rollout]) -> dict[str, list[float]]:
    examples, finished = [e.example for e in data], [r.finished for r in rollouts]
    if isinstance(run.task, FileTask):
        return run.task.judge(examples, texts, finished, [r.response for r in rollouts])
    return run.task.judge(examples, texts, finished)


def _check_verdicts(run: Run, verdicts: dict[str, list[float]], count: int) -> None:
    if isinstance(run.task, FileTask):
        return  # rewards are any numbers, and there may be no functions to judge
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

    count = len(columns["text"])
    figures: dict[str, float] = {}
    passed = columns.get("verdict/constraints", [])
    if passed:
        low, high = wilson_interval(int(sum(passed)), count)
        figures = {"pass_rate": mean(passed), "pass_rate_low": low, "pass_rate_high": high}
    tokens = sum(columns["expert_length"])
    if tokens:
        compared = [n for n, expert in zip(columns["length"], columns["expert_length"], strict=True) if expert]
        figures["length_ratio"] = sum(compared) / tokens
    figures["distinct_2"] = distinct_n(columns["text"], 2, words=WORD_BUDGET_PER_PROMPT * count)
    figures["truncated"] = mean(columns["truncated"])
    if tokens:
        figures["expert_logprob"] = sum(columns["expert_logprob"]) / tokens
    if "verdict/reward" in columns:
        known = [value for value in columns["verdict/reward"] if not math.isnan(value)]
        figures["reward_failed"] = 1.0 - len(known) / count
        if known:
            figures["reward"] = mean(known)
    if "verdict/in_language" in columns:
        in_language = columns["verdict/in_language"]
        figures["in_language"] = mean(in_language)
        figures["true_quality"] = mean([a * b for a, b in zip(passed, in_language, strict=True)])
    if "verdict/proxy" in columns:
        figures["proxy_reward"] = mean(columns["verdict/proxy"])
    return figures


def _expert_logprobs(run: Run, data: list[TokenizedExample]) -> list[float]:
    """Sum of the log-probs of each example's first expert response under the policy, at temperature 1; 0 without."""
    places = [place for place, example in enumerate(data) if example.experts]
    sums = [0.0] * len(data)
    if not places:
        return sums
    sequences = [Sequence(torch.tensor(data[i].prompt), torch.tensor(data[i].experts[0]), "expert") for i in places]
    batches = pack(sequences, run.recipe.parallel.micro_batch_tokens)
    for batch, (logprob_T, _) in zip(batches, run.policy.logprobs(batches), strict=True):
        for index, values in zip(batch.index_N, batch.responses(logprob_T), strict=True):
            sums[places[index]] = float(values.double().sum())
    return sums


def _shown(example: Example) -> str:
    """The prompt as the row has it, without what the chat template adds."""
    if example.messages is None:
        return example.prompt if example.row_prompt is None else example.row_prompt
    if len(example.messages) == 1:
        return str(example.messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in example.messages)


def _sample_reward(verdicts: dict[str, list[float]], index: int) -> float | None:
    for name in ("reward", "proxy"):
        if name in verdicts and not math.isnan(verdicts[name][index]):
            return verdicts[name][index]
    return None


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
            prompt=_shown(example.example),
            response=run.text(rollouts[i].response),
            expert=example.example.experts[0] if example.example.experts else "",
            reward=_sample_reward(verdicts, i),
            passed=bool(verdicts["constraints"][i]) if "constraints" in verdicts else None,
            sentences=sentences[i],
        )
        for i, example in enumerate(data)
    ]
