"""The figures of a training step (METHOD §6), from sums over the global batch."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aapa.batch import BatchCounts
from aapa.engine.flops import peak_flops, update_flops
from aapa.engine.metrics import histogram_counts
from aapa.engine.statistics import distinct_n, group_similarity

if TYPE_CHECKING:
    from aapa.engine.run import Run, StageRun
    from aapa.engine.sampling import RolloutBatch


@dataclass(frozen=True)
class FigureSums:
    """What one optimizer step left behind: sums of `policy_loss`, equal on all ranks."""

    sums: dict[str, float]
    grad_norm: float
    counts: BatchCounts
    learning_rate: float


def step_figures(
    run: Run,
    stage: StageRun,
    step: int,
    batch: RolloutBatch | None,
    updates: list[FigureSums],
    lengths: list[int],
    seconds: float,
) -> dict[str, Any]:
    """Figures of one step under the names of metrics.jsonl, equal on all ranks.

    `lengths` are those of this replica's sequences, in tokens, prompts included.
    """
    figures = _update_figures(updates)
    if batch is not None:
        shares = run.parallel.gather_over_data(_rollout_share(run, stage, batch))
        figures |= _rollout_figures(shares)
        figures |= batch.sampling
    figures |= stage.table.objective.coefficients(step)
    tokens = sum(u.counts.rollout_tokens + u.counts.expert_tokens for u in updates)
    figures["tokens"] = tokens
    figures["throughput/tokens_per_s"] = tokens / seconds
    figures |= _arithmetic(run, stage, lengths)
    figures["memory/peak_gb"] = _peak_memory_gb()
    figures |= {f"time/{phase}": spent for phase, spent in stage.times.items()}
    if "scoring" in stage.times:
        figures["time/anchor_share"] = stage.times["scoring"] / seconds
    figures["time/step"] = seconds
    return figures


def _arithmetic(run: Run, stage: StageRun, lengths: list[int]) -> dict[str, float]:
    """Useful arithmetic of the updates per rank and second, and its share of the GPU's stated peak (MFU)."""
    passes = stage.table.objective.epochs_per_rollout
    flops = torch.tensor([passes * update_flops(run.policy.hf, lengths)], dtype=torch.float64)
    total = float(run.parallel.sum_over_data(flops.to(run.parallel.device)))
    rate = total / stage.times["update"] / torch.distributed.get_world_size()
    peak = peak_flops(run.parallel.device)
    return {"throughput/update_tflops": rate / 1e12} | ({} if peak is None else {"throughput/mfu": rate / peak})


def _update_figures(updates: list[FigureSums]) -> dict[str, Any]:
    """Means over the optimizer steps of one rollout batch; ratios over all their tokens."""
    count = len(updates)
    sums: dict[str, float] = {}
    for update in updates:
        for name, value in update.sums.items():
            sums[name] = max(sums.get(name, 0.0), value) if name.startswith("max/") else sums.get(name, 0.0) + value
    figures: dict[str, Any] = {name: value / count for name, value in sums.items() if name.startswith("loss/")}
    figures["loss/total"] = sum(figures.values())
    figures |= _policy_figures(sums)
    experts = sum(update.counts.expert_tokens for update in updates)
    if "sum/phi" in sums and experts:
        figures["chord/phi"] = sums["sum/phi"] / experts
    figures["optim/grad_norm"] = sum(u.grad_norm for u in updates) / count
    figures["optim/learning_rate"] = updates[-1].learning_rate
    return figures


# Sums over rollout tokens → names of their means.
_MEANS = {
    "ratio": "policy/ratio",
    "rl_clipped_low": "policy/clip_fraction_low",
    "rl_clipped_high": "policy/clip_fraction_high",
    "adv_clipped_low": "anchor/clip_fraction_low",
    "adv_clipped_high": "anchor/clip_fraction_high",
    "kl_old": "policy/kl",
    "kl_ref": "policy/kl_ref",
    "entropy": "policy/entropy",
    "prob_error": "rollout/prob_error",
    "correction": "rollout/correction",
    "correction_masked": "rollout/correction_masked",
}


def _policy_figures(sums: dict[str, float]) -> dict[str, float]:
    """Means over the rollout tokens, and maxima."""
    tokens = sums.get("sum/tokens", 0.0)
    if not tokens:
        return {}
    figures = {name: sums[f"sum/{of}"] / tokens for of, name in _MEANS.items() if f"sum/{of}" in sums}
    for side in ("policy", "anchor"):
        if f"{side}/clip_fraction_low" in figures:
            parts = (figures[f"{side}/clip_fraction_low"], figures[f"{side}/clip_fraction_high"])
            figures[f"{side}/clip_fraction"] = sum(parts)
    figures["policy/max_log_ratio"] = sums["max/log_ratio"]
    if "max/prob_error" in sums:
        figures["rollout/max_prob_error"] = sums["max/prob_error"]
    return figures


def _rollout_share(run: Run, stage: StageRun, batch: RolloutBatch) -> dict[str, Any]:
    """What one replica knows of its rollouts, as plain lists to be put together."""
    size = stage.table.objective.group_size
    texts = [run.text(rollout.response) for rollout in batch.rollouts]
    share: dict[str, Any] = {
        "rewards": batch.rewards if stage.table.objective.needs_rewards else [],
        "group_size": size,
        "lengths": [len(rollout.response) for rollout in batch.rollouts],
        "expert_lengths": [len(example.experts[0]) for example in batch.examples if example.experts],
        "logged": list(stage.logged),
        "truncated": [not rollout.finished for rollout in batch.rollouts],
        "distinct_2": distinct_n(texts, 2),
        "similarity": group_similarity([texts[i : i + size] for i in range(0, len(texts), size)]),
    }
    anchor = stage.table.objective.anchor
    if batch.scores is not None and anchor is not None:
        share["scores"] = batch.scores.calibrated(math.inf)[batch.scores.judged()].tolist()
        share["clip"] = anchor.clip
    return share


def _rollout_figures(shares: list[dict[str, Any]]) -> dict[str, Any]:
    def every(name: str) -> list[Any]:
        return [value for share in shares for value in share.get(name, [])]

    lengths, expert = every("lengths"), every("expert_lengths")
    figures: dict[str, Any] = {
        "response/length": sum(lengths) / len(lengths),
        "response/truncated": sum(every("truncated")) / len(lengths),
        "response/distinct_2": sum(share["distinct_2"] for share in shares) / len(shares),
        "response/similarity": sum(share["similarity"] for share in shares) / len(shares),
    }
    if len(expert) == len(lengths):
        figures["response/length_ratio"] = sum(lengths) / sum(expert)
    logged: dict[str, list[float]] = {}
    for name, value in every("logged"):
        logged.setdefault(name, []).append(value)
    figures |= {f"reward/{name}": sum(values) / len(values) for name, values in logged.items()}
    size = shares[0]["group_size"]
    rewards = [share["rewards"][i : i + size] for share in shares for i in range(0, len(share["rewards"]), size)]
    if rewards:
        figures |= _reward_figures(rewards)
    if every("scores"):
        figures |= _anchor_figures(every("scores"), shares[0]["clip"])
    return figures


def _reward_figures(groups: list[list[float]]) -> dict[str, Any]:
    known = [[value for value in group if not math.isnan(value)] for group in groups]
    values = torch.tensor([value for group in known for value in group], dtype=torch.float64)
    return {
        "reward/mean": float(values.mean()),
        "reward/std": float(values.std(correction=0)) if len(values) else math.nan,
        "reward/zero_variance": sum(len(set(group)) <= 1 for group in known) / len(groups),
        "reward/masked": 1.0 - len(values) / sum(map(len, groups)),
        "reward/failed": sum(map(len, groups)) - len(values),
    }


def _anchor_figures(scores: list[float], clip: float) -> dict[str, Any]:
    calibrated = torch.tensor(scores, dtype=torch.float64)
    return {
        "anchor/mean": float(calibrated.clamp(-clip, clip).mean()),
        "anchor/std": float(calibrated.clamp(-clip, clip).std(correction=0)),
        "anchor/saturated": float((calibrated.abs() > clip).double().mean()),
        "anchor/clip": clip,
        "anchor/histogram": histogram_counts(calibrated.tolist(), limit=clip),
    }


def _peak_memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
