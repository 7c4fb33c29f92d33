"""`aapa discriminator`: fit one outside of a run, bring its expert cache up to date, score texts with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from aapa.discriminator import Comparison, Discriminator, ExpertCache, PolarDiscriminator, load
from aapa.discriminator.quality import score_histogram
from aapa.discriminator.store import load_card, read_record
from aapa.engine.console import announce
from aapa.engine.data import TokenizedExample, tokenized
from aapa.engine.discriminator_stage import (
    Drift,
    discriminator_directory,
    examine_again,
    fit_discriminator,
    open_scorer,
    policy_directory,
)
from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.hf_directory import SafetensorsWeights, read_config
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.progress import StageProgress
from aapa.engine.recipe import Recipe
from aapa.engine.reward_model import RewardModel
from aapa.engine.run import Run
from aapa.engine.score_plots import plot_scores
from aapa.engine.scoring import Scorer, SentenceScorer, check_origin
from aapa.engine.setup import open_run
from aapa.sentences import build_sentence_table

# Responses scored at a time, and tokens of a forward pass.
BATCH, BATCH_TOKENS = 256, 16384


@dataclass(frozen=True)
class DriftLimits:
    """How far a discriminator may have moved before it must be fitted anew.

    Attributes:
        auc_drop: fall of the held-out AUC, of all negatives or of genuine rollouts.
        shift: of the mean score of held-out rollouts, in sigma_off, either way.
    """

    auc_drop: float = 0.03
    shift: float = 0.25


def fit(recipe: Recipe, run_directory: Path, output: Path | None) -> None:
    """Fit the recipe's discriminator on the policy that `fit_after` left in the run directory, and freeze it.

    Raises:
        UserError: the recipe has none to fit, or the run has not come so far.
    """
    if recipe.discriminator is None or recipe.discriminator.source is not None:
        got = "nothing" if recipe.discriminator is None else "a source"
        raise UserError(f"discriminator.fit_after: expected a discriminator to fit, got {got}")
    with _opened(recipe, run_directory) as run:
        _take_policy(run)
        directory = output or run_directory / "discriminator"
        fit_discriminator(run, directory)
        if run.parallel.is_main:
            announce(f"frozen in {directory}")


def refresh(recipe: Recipe, run_directory: Path, limits: DriftLimits) -> None:
    """Embed the training experts that are new or changed, and see whether the discriminator still fits them.

    The discriminator itself is frozen and stays as it is.

    Raises:
        UserError: its figures on the current experts are beyond the limits.
    """
    anchor = next((s.objective.anchor for s in recipe.stages if s.objective.anchor and s.objective.anchor.active), None)
    if anchor is None:
        raise UserError("stages: expected an anchored one, whose experts are cached, got none")
    with _opened(recipe, run_directory) as run:
        directory = discriminator_directory(run)
        scorer = open_scorer(run, anchor)
        examples = tokenized(run.task.examples("train"), run.tokenizer, run.policy.hf.max_position_embeddings, "train")
        computed = _embed(scorer, examples)
        if scorer.trunk is None:
            announce(f"experts: {len(examples)} fit the reward model, which reads them with each response")
        else:
            announce(f"experts: {computed} of {len(examples)} embedded, the others were in the cache")
        card = load_card(directory)
        if card is None:
            raise UserError(f"{directory}: expected a quality card to compare with, got none")
        _take_policy(run)
        drift = examine_again(run, scorer, card)
    announce(
        f"drift: AUC {drift.auc:+.3f}, against genuine rollouts {drift.rollouts:+.3f}; "
        f"mean score {drift.shift:+.2f} σ, spread ×{drift.spread:.2f}"
    )
    _check_drift(drift, limits)


def _check_drift(drift: Drift, limits: DriftLimits) -> None:
    problems = [
        f"{name}: expected a fall of at most {limits.auc_drop:g}, got {-value:.3f}"
        for name, value in (("auc", drift.auc), ("rollouts", drift.rollouts))
        if value < -limits.auc_drop
    ]
    if abs(drift.shift) > limits.shift:
        problems.append(f"shift: expected at most {limits.shift:g} σ, got {drift.shift:+.2f}")
    if problems:
        raise UserError("\n".join([*problems, "the experts have changed too much: fit the discriminator anew"]))


def _embed(scorer: Scorer, examples: Sequence[TokenizedExample]) -> int:
    with StageProgress("experts", len(examples), ()) as progress:
        return scorer.prepare(examples, lambda done, total: progress.update(done, {}))


class _opened:
    """A run as a context: the groups of a job of one process, and what the recipe names."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe, self.directory = recipe, directory

    def __enter__(self) -> Run:
        torch.set_num_threads(self.recipe.parallel.threads)
        parallel = groups.start(timeout_seconds=self.recipe.parallel.timeout_seconds)
        return open_run(self.recipe, self.directory, parallel)

    def __exit__(self, *_: object) -> None:
        groups.stop()


def _take_policy(run: Run) -> None:
    """Load the policy whose rollouts are the discriminator's negatives."""
    settings = run.recipe.discriminator
    assert settings is not None
    if settings.source is None:
        directory = policy_directory(run)
        if not directory.is_dir():
            raise UserError(
                f"discriminator.fit_after: expected {settings.fit_after!r} to have ended in {run.directory}, got no "
                f"{directory}; train the recipe until then"
            )
        run.policy.load_weights(SafetensorsWeights(directory), source=str(directory))
    run.sync_engine()


def score(discriminator: Path, data: Path, output: Path | None) -> None:
    """Score responses in a JSONL file of {"prompt", "response", "expert"}; one row each, by sentence.

    Args:
        discriminator: directory of a frozen one.
        data: "expert" may be a list, of which the first is taken.
        output: where rows of {"score", "sentences"} go; a histogram is drawn beside it. None prints them.

    Raises:
        UserError: a row is not as it should be, by file and line.
    """
    frozen = load(discriminator)
    facts = read_record(discriminator)["trunk"]
    directory = (discriminator / facts["directory"]).resolve()
    rows = list(_rows(data))
    if isinstance(frozen, PolarDiscriminator):
        scored = _judge_texts(frozen, directory, rows)
    else:
        assert isinstance(frozen, Discriminator), "a kind that is no reward model scores sentence states"
        scored = _score_texts(frozen, directory, facts, rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in scored]
    if output is None:
        print("\n".join(lines))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = [sentence["score"] for row in scored for sentence in row["sentences"] if sentence["score"] is not None]
    picture = plot_scores({data.stem: score_histogram(torch.tensor(values))}, output.with_suffix(".png"))
    announce(f"{len(rows)} responses, {len(values)} sentences, mean score {sum(values) / max(len(values), 1):+.3f}")
    announce(f"written to {output} and {picture}")


def _score_texts(
    frozen: Discriminator, directory: Path, facts: dict[str, Any], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of scores by sentence, from the states of the trunk in a directory."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config = read_config(directory, "discriminator.trunk")
    parallel = groups.start()
    try:
        layers, layer = int(config.num_hidden_layers), facts["layer"]
        trunk = FrozenModel(
            config,
            SafetensorsWeights(directory, "discriminator.trunk", config),
            parallel,
            torch.float32,
            BATCH_TOKENS,
            layer if layer >= -1 else layers + 1 + layer,
            facts["logprob_features"],
        )
        table = build_sentence_table(tokenizer, vocab_size=config.vocab_size)
        scorer = SentenceScorer(frozen, trunk, table, ExpertCache(trunk, frozen.origin, table, frozen.granularity))
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return [row for part in parts for row in _score(scorer, tokenizer, part)]
    finally:
        groups.stop()


def _judge_texts(frozen: PolarDiscriminator, directory: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one score a response, of the reward model in a directory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = RewardModel(directory, device, torch.float32, BATCH_TOKENS)
    check_origin(frozen, model)
    with StageProgress("reward model", len(rows), (), console=Console(stderr=True)) as progress:
        raw = model.score(
            [Comparison(row["prompt"], row["expert"], row["response"]) for row in rows],
            lambda done, _: progress.update(done, {}),
        )
    values = [round((score - frozen.mean) / frozen.std, 4) for score in raw]
    return [
        {"score": value, "sentences": [{"text": row["response"], "score": value}]}
        for row, value in zip(rows, values, strict=True)
    ]


def _score(scorer: SentenceScorer, tokenizer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    eos = tokenizer.eos_token_id
    examples = [
        TokenizedExample(
            Example(index, row["prompt"], (row["expert"],), {}), ids(row["prompt"]), ([*ids(row["expert"]), eos],)
        )
        for index, row in enumerate(rows)
    ]
    responses = [[*ids(row["response"]), eos] for row in rows]
    scores = scorer.score(examples, responses)
    calibrated_S = scores.calibrated(float("inf"))
    found = []
    for index, (response, cu) in enumerate(zip(responses, scores.cu_sents, strict=True)):
        values = scores.within(index, calibrated_S).tolist()
        bounds = cu.tolist()
        sentences = [
            {
                "text": tokenizer.decode(response[a:b], skip_special_tokens=True),
                "score": round(value, 4) if scores.anchored[index] else None,
            }
            for a, b, value in zip(bounds[:-1], bounds[1:], values, strict=True)
        ]
        mean = sum(values) / len(values) if values and scores.anchored[index] else None
        found.append({"score": None if mean is None else round(mean, 4), "sentences": sentences})
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{where}: expected a JSON object, got {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
        if isinstance(row.get("expert"), list) and row["expert"]:
            row["expert"] = row["expert"][0]
        for key in ("prompt", "response", "expert"):
            if not isinstance(row.get(key), str) or (key != "response" and not row[key]):
                raise UserError(f"{where}.{key}: expected a text, got {row.get(key)!r}")
        yield row
