"""`summary.json`: one row per evaluated policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aapa.engine.evaluate import Evaluation
from aapa.engine.recipe import Recipe


class SummaryFile:
    """The rows of a run's `summary.json`."""

    def __init__(self, directory: Path, rows: list[dict[str, Any]]) -> None:
        self.path = directory / "summary.json"
        self.rows = list(rows)

    def add(
        self, recipe: Recipe, stage: str, result: Evaluation, drift: float | None, tokens: float | None, seconds: float
    ) -> None:
        """One more row.

        Args:
            drift: mean log-prob per token of the experts, less that of the run's first evaluated policy.
            tokens: trained on so far, in the run; None for a policy that was only evaluated.
            seconds: of the run, or the evaluation, so far.
        """
        figures = result.figures
        judged = "pass_rate" in figures
        self.rows.append(
            {
                "name": recipe.name,
                "stage": stage,
                "seed": recipe.seed,
                "split": result.split,
                "prompts": result.prompts,
                "pass_rate": figures.get("pass_rate"),
                "pass_rate_ci": [figures["pass_rate_low"], figures["pass_rate_high"]] if judged else None,
                "in_language": figures.get("in_language"),
                "true_quality": figures.get("true_quality"),
                "proxy_reward": figures.get("proxy_reward"),
                **({"reward": figures.get("reward")} if "reward_failed" in figures else {}),
                "length_ratio": figures.get("length_ratio"),
                "distinct_2": figures["distinct_2"],
                "expert_logprob": figures.get("expert_logprob"),
                "expert_logprob_drift": drift,
                "tokens": None if tokens is None else int(tokens),
                "seconds": round(seconds, 1),
            }
        )

    def write(self) -> None:
        staging = self.path.with_suffix(".json.staging")
        staging.write_text(json.dumps(self.rows, indent=1))
        staging.replace(self.path)
