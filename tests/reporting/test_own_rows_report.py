"""The report of a run on rows of one's own: what passes, how many rows, which settings, where the time went."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aapa.engine.errors import UserError
from aapa.engine.plots import PANELS
from aapa.engine.report import lay_out, write_report

ROW = {
    "name": "own", "stage": "rl", "seed": 0, "split": "test", "prompts": 8,
    "pass_rate": 0.25, "pass_rate_ci": [0.1, 0.5], "in_language": None, "true_quality": None, "proxy_reward": None,
    "reward": 0.4, "length_ratio": 1.2, "distinct_2": 0.9,
    "expert_logprob": -1.5, "expert_logprob_drift": 0.5, "tokens": 100, "seconds": 3.0,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps([ROW]))
    (tmp_path / "data.json").write_text('{"rows": 1234, "set_aside": 56, "digest": "x"}')
    (tmp_path / "recipe.toml").write_text('name = "own"\n[data]\ntask = "mini-if"\nfiles = ["mine.jsonl"]\n')
    figures = {
        "time/rollout": 1.0,
        "time/scoring": 1.0,
        "time/anchor_share": 0.5,
        "time/step": 2.5,
        "reward/masked": 0.0,
    }
    row = {"kind": "train", "stage": "rl", "step": 1, "global_step": 1, **figures}
    evaluated = {"kind": "eval", "stage": "rl", "step": 1, "global_step": 1, "split": "dev", "eval/reward": 0.4}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(evaluated) + "\n")
    return tmp_path


def test_the_page(run: Path) -> None:
    page = write_report([run]).read_text()
    assert "rows of one&#x27;s own: 1234, set aside: 56" in page
    assert "mine.jsonl" in page
    assert "data.task" not in page
    assert ">passed<" in page
    assert "constraints met" not in page
    assert "anchor_share" not in page
    # 2.5 s in all: two phases of 1 s, and what is left.
    times = re.findall(r"([\d.]+) s<small>(\d+)%", page)
    assert times == [("1.0", "40"), ("1.0", "40"), ("0.5", "20")]


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 3}', '{"rows": "x", "set_aside": 0}'])
def test_a_damaged_count_of_rows_is_named(run: Path, content: str) -> None:
    (run / "data.json").write_text(content)
    with pytest.raises(UserError, match=r"data.json: expected the number of rows"):
        write_report([run])


def test_a_policy_that_was_only_evaluated_has_its_log_prob() -> None:
    headings = [column.heading for column in lay_out([ROW]).columns]
    assert "expert log-prob drift" in headings
    assert "expert log-prob" not in headings
    alone = lay_out([ROW | {"expert_logprob_drift": None, "tokens": None}])
    headings = [column.heading for column in alone.columns]
    assert "expert log-prob" in headings
    assert "tokens" not in headings
    assert not any("drift" in note for note in alone.notes)


def test_verdicts_of_a_task_keep_their_names() -> None:
    headings = [column.heading for column in lay_out([ROW, {k: v for k, v in ROW.items() if k != "reward"}]).columns]
    assert "constraints met" in headings
    titles = {panel.key: panel.title for panel in PANELS}
    assert {"eval/reward", "reward/masked", "eval/expert_logprob"} <= set(titles)
