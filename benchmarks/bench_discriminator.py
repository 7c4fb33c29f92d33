"""What a discriminator sees, what gives it away, and what a fine-tuned trunk would see on the same pairs.

Takes the directory of a run that fitted one on mini-IF, such as `aapa train` of `demo-start`, and examines fresh
material of the policy that the discriminator was fitted on: the card of a fit, the card of a fit to shuffled labels,
probes for leaks, the response-wise AUC of in-language against not, and an upper bound, whose trunk is trained whole
with the same head on the same kinds of pairs. Run it from the repository's root:
`python -m benchmarks.bench_discriminator RUN_DIR [--prompts N] [--epochs N] [--output FILE]`.

Shape legend: S sentences of a pool, D hidden size, B pairs, N responses.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from aapa.discriminator import FitMaterial, FitSettings, QualityCard, SentenceDiscriminator
from aapa.discriminator.base import Origin, Trunk
from aapa.discriminator.fit import feature_statistics, pair_loss, split_material, standardised, train_model
from aapa.discriminator.held_out import calibrate, quality_card, reference_scores, response_means
from aapa.discriminator.material import Tokenization, anchored_material, build_pool
from aapa.discriminator.pairs import PairSampler, SentencePool
from aapa.discriminator.quality import auc
from aapa.discriminator.sentence import SentenceModel
from aapa.engine import discriminator_stage as stage
from aapa.engine.discriminator_command import _take_policy
from aapa.engine.discriminator_material import draw_material, fit_settings
from aapa.engine.policy import parallel as groups
from aapa.engine.recipe import load_recipe
from aapa.engine.run import Run
from aapa.engine.setup import open_run
from aapa.engine.tasks.mini_if.language import in_language
from benchmarks.harness import commit, device_name, versions

PROMPTS_PER_BATCH, PAIRS_PER_BATCH, SEQUENCES_PER_FORWARD = 16, 512, 64
TRUNK_LEARNING_RATE, HEAD_LEARNING_RATE = 3e-4, 1e-3
PROBE_PAIRS = 50_000


@dataclass
class Recorder:
    """A trunk that gives sentence numbers for states, and keeps what it was asked and what the frozen trunk says."""

    frozen: Trunk
    hidden_size: int = 1
    hash: str = "recorder"
    prompts: list[list[int]] = field(default_factory=list)
    responses: list[list[int]] = field(default_factory=list)
    cu_sents: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def sentence_states(self, prompts: list[list[int]], responses: list[list[int]], cu_sents: list[Tensor]) -> Tensor:
        first = sum(map(len, self.states))
        self.prompts += prompts
        self.responses += responses
        self.cu_sents += cu_sents
        self.states.append(self.frozen.sentence_states(prompts, responses, cu_sents))
        return torch.arange(first, first + len(self.states[-1])).float()[:, None]


@dataclass(frozen=True)
class Recorded:
    """A pool of frozen features, and how to compute those of another model for the same rows."""

    pool: SentencePool
    number_S: Tensor
    recorder: Recorder

    @classmethod
    def of(
        cls, trunk: Trunk, material: Sequence[FitMaterial], tokenization: Tokenization, corruptions: int, seed: str
    ) -> Recorded:
        recorder = Recorder(trunk)
        held_out = seed.startswith("held out")
        pool = build_pool(recorder, material, tokenization, corruptions, random.Random(seed), reference_only=held_out)
        number_S = pool.state_SD[:, 0].long()
        return cls(replace(pool, state_SD=torch.cat(recorder.states)[number_S]), number_S, recorder)

    def position_S(self) -> Tensor:
        """Place of each sentence in its response, from 0 to 1."""
        counts = [len(cu) - 1 for cu in self.recorder.cu_sents]
        return torch.cat([torch.arange(n) / max(n - 1, 1) for n in counts])[self.number_S]

    def states(self, model: Any) -> Tensor:
        """Mean last hidden state of each row's span under a transformers model, [S, D], with gradient."""
        prompts, responses, cu_sents = self.recorder.prompts, self.recorder.responses, self.recorder.cu_sents
        sequences = [torch.tensor([*p, *r]) for p, r in zip(prompts, responses, strict=True)]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for start in range(0, len(order), SEQUENCES_PER_FORWARD):
            places = order[start : start + SEQUENCES_PER_FORWARD]
            ids = pad_sequence([sequences[i] for i in places], batch_first=True)
            mask = pad_sequence([torch.ones_like(sequences[i]) for i in places], batch_first=True)
            hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            for i, hidden_TD in zip(places, hidden, strict=True):
                bounds = [len(prompts[i]) + b for b in cu_sents[i].tolist()]
                means = [hidden_TD[a:b].mean(0) for a, b in pairwise(bounds)]
                found[i] = torch.stack(means) if means else hidden_TD[:0]
        return torch.cat(found)[self.number_S]


def card_of(model: SentenceModel, pool: SentencePool) -> tuple[QualityCard, SentenceDiscriminator]:
    """Figures of a trained head on a pool of standardised features."""
    width = pool.state_SD.shape[1]
    origin = Origin("benchmark", -1, "benchmark")
    frozen = SentenceDiscriminator(model.head(torch.zeros(width), torch.ones(width)), 0.0, 1.0, origin)
    mean, std = calibrate(frozen, pool)
    frozen = replace(frozen, mean=mean, std=std)
    return quality_card(frozen, pool, pool, 0), frozen


def in_language_auc(discriminator: SentenceDiscriminator, pool: SentencePool, language_N: Tensor) -> dict[str, float]:
    """Rollouts in the experts' language against the others, by the mean and by the least score of their sentences."""
    kept_N = pool.rollout_length_N > 0
    language_N = language_N[kept_N]
    score_B = reference_scores(discriminator, pool)
    mean_N, length_N = response_means(score_B, pool.rollout_length_N)
    least_N = torch.stack([part.min() for part in score_B.split(length_N.tolist())])
    return {
        name: round(auc(score_N[language_N], score_N[~language_N]), 4)
        for name, score_N in (("mean", mean_N), ("least", least_N))
    }


def leaks(recorded: Recorded) -> dict[str, dict[str, float]]:
    """AUC, at least 0.5, of set size, position and nearest expert sentence alone, by where the negative comes from.

    Pairs as a fit draws them. The nearest sentence is meant to tell other prompts and damage apart.
    """
    pool = recorded.pool
    found = {}
    unit_SD = normalize(pool.state_SD - pool.state_SD.mean(0), dim=1)
    position_S = recorded.position_S()
    for source, mix in (
        ("rollouts", (1.0, 0.0, 0.0)),
        ("other_prompts", (0.0, 1.0, 0.0)),
        ("damaged", (0.0, 0.0, 1.0)),
    ):
        pairs = PairSampler(pool, mix, torch.Generator().manual_seed(0)).sample(PROBE_PAIRS)
        size_2B = pairs.cu_expert.diff()
        owner_E = torch.arange(len(size_2B)).repeat_interleave(size_2B)
        cosine_E = torch.cat(
            [
                (unit_SD[row] * unit_SD[expert]).sum(1)
                for row, expert in zip(
                    pairs.row_2B[owner_E].split(PROBE_PAIRS), pairs.expert_E.split(PROBE_PAIRS), strict=True
                )
            ]
        )
        nearest_2B = torch.full((len(size_2B),), -2.0).scatter_reduce(0, owner_E, cosine_E, "amax")
        found[source] = {
            name: round(0.5 + abs(auc(*value.float().split(PROBE_PAIRS)) - 0.5), 4)
            for name, value in (
                ("set_size", size_2B),
                ("position", position_S[pairs.row_2B]),
                ("nearest", nearest_2B),
            )
        }
    return found


def upper_bound(
    run: Run, parts: list[Recorded], train: Recorded, test: Recorded, settings: FitSettings, epochs: int
) -> tuple[SentenceModel, SentencePool]:
    """Trains trunk and head together; the head, and the held-out pool with the features that it reads.

    The head sees the frozen features beside the trained states, so that it has all that a fit has.
    """
    model = AutoModelForCausalLM.from_pretrained(
        stage.policy_directory(run), dtype=torch.float32, local_files_only=True
    )
    mean_D, std_D = feature_statistics(train.pool)
    with torch.no_grad():
        start = replace(train.pool, state_SD=train.states(model))
    own_mean_D, own_std_D = feature_statistics(start)

    def features(recorded: Recorded) -> Tensor:
        own_SD = (recorded.states(model) - own_mean_D) / own_std_D
        return torch.cat([own_SD, (recorded.pool.state_SD - mean_D) / std_D], 1)

    width = len(mean_D) + len(own_mean_D)
    head = SentenceModel(width, settings.rank, settings.width, settings.temperature, settings.dropout)
    rates = [TRUNK_LEARNING_RATE, HEAD_LEARNING_RATE]
    trained = [list(model.model.parameters()), list(head.parameters())]
    optimizer = torch.optim.AdamW([{"params": p} for p in trained], weight_decay=settings.weight_decay)
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    cu_group = torch.arange(2 * PAIRS_PER_BATCH + 1)
    for epoch in range(epochs):
        for place, part in enumerate(rng.sample(parts, len(parts))):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - (epoch + place / len(parts)) / epochs)
            state_SD = features(part)
            pairs = PairSampler(part.pool, settings.negative_mix, generator).sample(PAIRS_PER_BATCH)
            score_2B = head(state_SD[pairs.row_2B], cu_group, state_SD[pairs.expert_E], pairs.cu_expert)
            loss = pair_loss(*score_2B.split(PAIRS_PER_BATCH), settings.loss)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_([p for group in trained for p in group], 1.0)
            optimizer.step()
        print(f"upper bound: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", file=sys.stderr)
    with torch.no_grad():
        return head, replace(test.pool, state_SD=features(test))


def measure(run: Run, prompts: int, epochs: int) -> dict[str, Any]:
    """All figures of a run's discriminator, on `prompts` training prompts of which a share is held out."""
    table = run.recipe.discriminator
    assert table is not None, "the recipe has no discriminator"
    table = table.model_copy(update={"prompts": prompts})
    settings, seed = fit_settings(run, table), run.recipe.seed
    material = anchored_material(draw_material(run, table)[1], stage.sentence_table(run), settings.delimiters)
    tokenization = Tokenization(*stage._tokenization(run), settings.granularity, settings.delimiters)
    trunk = stage.open_trunk(run, stage._trunk_directory(run, table), table.layer, table.logprob_features)
    corruptions = settings.corruptions_per_prompt
    figures: dict[str, Any] = {}
    for name, shuffled in (("shuffled_labels", True), ("fit", False)):
        fitted_on, held_out = split_material(material, replace(settings, shuffle_labels=shuffled), seed)
        train = Recorded.of(trunk, fitted_on, tokenization, corruptions, "fit")
        test = Recorded.of(trunk, held_out, tokenization, corruptions, "held out")
        statistics = feature_statistics(train.pool)
        mix = (1.0, 0.0, 0.0) if shuffled else settings.negative_mix
        head = train_model(standardised(train.pool, *statistics), replace(settings, negative_mix=mix), seed, None)
        standard = standardised(test.pool, *statistics)
        card, frozen = card_of(head, standard)
        figures[name] = _card_figures(card)
    language_N = torch.tensor(_in_language(run, held_out))
    figures["in_language_share"] = round(float(language_N.float().mean()), 4)
    figures["fit"]["in_language_by_response"] = in_language_auc(frozen, standard, language_N)
    figures["leaks"] = leaks(test)
    whole = len(fitted_on) - len(fitted_on) % PROMPTS_PER_BATCH
    starts = range(0, whole, PROMPTS_PER_BATCH)
    parts = [
        Recorded.of(trunk, fitted_on[a : a + PROMPTS_PER_BATCH], tokenization, corruptions, f"part {a}") for a in starts
    ]
    head, pool = upper_bound(run, parts, train, test, settings, epochs)
    card, frozen = card_of(head, pool)
    figures["upper_bound"] = _card_figures(card)
    figures["upper_bound"]["in_language_by_response"] = in_language_auc(frozen, pool, language_N)
    return figures


def _card_figures(card: QualityCard) -> dict[str, Any]:
    values = card.to_json()
    return {name: value for name, value in values.items() if name not in ("histograms", "counts")}


def _in_language(run: Run, material: Sequence[FitMaterial]) -> list[bool]:
    """Of each rollout of the material, whether its text is in the experts' language."""
    examples = {example.prompt: example for example in run.task.examples("train")}
    difficulty = run.task.variant.difficulty  # type: ignore[attr-defined]
    verdicts = []
    for item in material:
        example = examples[run.tokenizer.decode(item.prompt)]
        for rollout in item.rollouts:
            text = run.tokenizer.decode(rollout, skip_special_tokens=True)
            verdicts.append(in_language(text, example.columns["topic"], difficulty))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="directory of a run on mini-IF that fitted a discriminator")
    parser.add_argument("--prompts", type=int, default=1000, help="training prompts, a share of them held out")
    parser.add_argument("--epochs", type=int, default=6, help="of the upper bound over the fitted prompts")
    parser.add_argument("--output", type=Path, help="append the figures as a JSON line")
    options = parser.parse_args()
    recipe = load_recipe(str(options.run / "recipe.toml"), [])
    torch.set_num_threads(recipe.parallel.threads)
    run = open_run(recipe, options.run, groups.start())
    try:
        _take_policy(run)
        figures = measure(run, options.prompts, options.epochs)
    finally:
        groups.stop()
    facts: dict[str, Any] = {"benchmark": "discriminator", "prompts": options.prompts, "epochs": options.epochs}
    facts["task_options"] = recipe.data.options
    facts |= {"commit": commit(), "device": device_name(torch.device("cpu")), "versions": versions()}
    line = json.dumps({**facts, **figures})
    print(line)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
