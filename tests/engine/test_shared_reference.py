"""The KL reference and the discriminator's trunk as one model: the same figures, one forward pass, and its price."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runs import rl_table, weights

from aapa.engine.anchor_cost import AnchorCost
from aapa.engine.metrics import read_metrics
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.recipe import parse_recipe
from aapa.engine.trainer import train

pytestmark = pytest.mark.usefixtures("own_reward")


@pytest.fixture(scope="module")
def same_trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start whose discriminator reads the SFT policy, which the next run begins from."""
    from runs import start_table

    table = start_table()
    table["discriminator"]["trunk"] = "stage_start"
    directory = tmp_path_factory.mktemp("same")
    train(parse_recipe(table), directory)
    return directory


def run(start: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, share: bool) -> tuple[list[dict], int]:
    """Rows of a run with KL and anchor, and how many forward passes of frozen models its steps took."""
    passes = []
    with monkeypatch.context() as patch:
        for name in ("read", "logprobs"):
            plain = getattr(FrozenModel, name)

            def counted(self, *args, plain=plain, **kwargs):
                passes.append(self)
                return plain(self, *args, **kwargs)

            patch.setattr(FrozenModel, name, counted)
        if not share:
            patch.setattr("aapa.engine.setup.model_hash", lambda *args: "another")
        train(parse_recipe(rl_table(start, 0.5, steps=3, beta=0.1)), directory)
    rows = [row for row in read_metrics(directory) if row["kind"] == "train"]
    return rows, len(passes)


def test_one_pass_gives_what_two_give(same_trunk, tmp_path, monkeypatch, capsys):
    alone, more = run(same_trunk, tmp_path / "alone", monkeypatch, share=False)
    out = capsys.readouterr().out
    assert "one copy, and one forward pass" not in out
    assert "; the KL reference another " in out
    shared, fewer = run(same_trunk, tmp_path / "shared", monkeypatch, share=True)
    out = capsys.readouterr().out
    assert "the KL reference is the discriminator's trunk: one copy, and one forward pass, serve both" in out
    assert "with the KL reference's log-probs from the same forward pass" in out
    assert more - fewer == 3  # a pass for the reference in each of three steps
    for row, want in zip(shared, alone, strict=True):
        assert row["loss/kl"] == pytest.approx(want["loss/kl"], rel=1e-3, abs=1e-7)
        assert row["anchor/mean"] == pytest.approx(want["anchor/mean"], abs=1e-4)
        assert "time/reference" in want
        assert "time/reference" not in row
        assert 0 < row["time/anchor_share"] < 1
    for name, weight in weights(tmp_path / "alone").items():
        assert (weights(tmp_path / "shared")[name] - weight).abs().max() < 1e-3, name


def test_another_trunk_is_not_shared(start, tmp_path, capsys):
    train(parse_recipe(rl_table(start, 0.5, steps=1, beta=0.1)), tmp_path / "run")
    assert "one forward pass" not in capsys.readouterr().out


def test_the_cost_is_told_in_a_line():
    cost = AnchorCost()
    cost.add({"time/step": 8.0, "time/scoring": 1.0, "time/reference": 2.0, "loss/total": 3.0})
    cost.add({"time/step": 2.0, "time/scoring": 1.0})
    assert cost.text(False) == "scoring took 2.0 s of 10.0 s, 20.0% of the steps; the KL reference another 20.0%"
    assert "from the same forward pass" in cost.text(True)
