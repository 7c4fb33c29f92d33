"""Curves: the picture shows what was logged, and nothing that was not."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from aapa.engine import plots
from aapa.engine.metrics import read_metrics
from aapa.engine.plots import PANELS, absent_panels, plot_curves, plot_seeds
from aapa.engine.statistics import mean_interval, wilson_interval


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: Path) -> Path:
        saved.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return saved


def axis_of(figure: Figure, title: str) -> Any:
    (axis,) = [axis for axis in figure.axes if axis.get_title(loc="left") == title]
    return axis


def train_rows(stage: str, start: int, values: list[float], key: str = "reward/mean") -> list[dict[str, Any]]:
    return [
        {"kind": "train", "stage": stage, "step": place + 1, "global_step": start + place, key: value}
        for place, value in enumerate(values)
    ]


def near(pixels: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return int((np.abs(pixels[..., :3] - wanted).max(axis=-1) < 0.04).sum())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_curves_of_two_runs_are_drawn(make_run: Any, tmp_path: Path, theme: Any) -> None:
    runs = {name: read_metrics(make_run(name, weight=weight)) for name, weight in (("grpo", 0.0), ("a-grpo", 1.0))}
    pixels = imread(plot_curves(runs, tmp_path / "new" / "curves.png", theme=theme))
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 1000
    for colour in plots._COLOURS[theme][:2]:
        assert near(pixels, colour) > 1500, f"{colour} is hardly there"
    assert near(pixels, plots._COLOURS[theme][2]) < 200
    assert near(pixels, plots._INK[theme][0]) > 0.7 * pixels.shape[0] * pixels.shape[1]


def test_panels_without_values_are_left_out(make_run: Any, tmp_path: Path, figures: list[Figure]) -> None:
    runs = {"grpo": read_metrics(make_run("grpo"))}
    plot_curves(runs, tmp_path / "curves.png")
    titles = [axis.get_title(loc="left") for axis in figures[0].axes]
    assert absent_panels(runs) == ["Probability ratio ρ, mean", "Share of tokens clipped"]
    gone = {"Probability ratio ρ, mean", "Share of tokens clipped"}
    assert titles == [panel.title for panel in PANELS if panel.title not in gone and not panel.optional]
    rows = [row | {"chord/mu": 0.1} for row in runs["grpo"]]
    plot_curves({"chord": rows}, tmp_path / "chord.png")
    assert "Coefficient μ of the SFT loss" in [axis.get_title(loc="left") for axis in figures[1].axes]


def test_lines_break_at_stages_and_gaps_are_skipped(tmp_path: Path, figures: list[Figure]) -> None:
    rows = train_rows("a", 1, [1.0, math.nan, 3.0]) + train_rows("b", 4, [10.0, 11.0])
    plot_curves({"run": rows}, tmp_path / "c.png")
    axis = axis_of(figures[0], "Training reward, mean")
    lines = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
    assert [(1, 1.0), (3, 3.0)] in lines
    assert [(4, 10.0), (5, 11.0)] in lines
    # The remaining line marks where stage b begins; both stages are named.
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() != "-"] == [4]
    assert [text.get_text() for text in axis.texts] == ["a", "b"]


def test_stages_of_two_arms_are_named_together(tmp_path: Path, figures: list[Figure]) -> None:
    first, second = train_rows("sft", 1, [0.1] * 50), train_rows("sft", 1, [0.2] * 50)
    first += train_rows("grpo", 51, [0.3] * 50)
    second += train_rows(r"$\bad{$", 51, [0.3] * 50)
    plot_curves({"x": first, r"$\bad{$": second}, tmp_path / "c.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["sft", r"grpo / $\bad{$"]


def test_pass_rate_has_its_interval(tmp_path: Path, figures: list[Figure]) -> None:
    header = {"kind": "eval", "stage": "sft", "step": 1}
    rows = [
        header | {"global_step": 5, "eval/pass_rate": 0.25, "eval/prompts": 64},
        header | {"global_step": 9, "eval/pass_rate": 0.5, "eval/pass_rate_low": 0.3, "eval/pass_rate_high": 0.7},
        header | {"global_step": 12, "eval/pass_rate": 0.75},
        {"kind": "train", "stage": "sft", "step": 1, "global_step": 3, "eval/pass_rate": 0.99},
    ]
    plot_curves({"run": rows}, tmp_path / "c.png")
    axis = axis_of(figures[0], "Held-out pass rate")
    assert axis.lines[0].get_xydata().tolist() == [[5, 0.25], [9, 0.5], [12, 0.75]]
    (bars,) = axis.collections
    low, high = wilson_interval(16, 64)
    assert np.array(bars.get_segments()) == pytest.approx(np.array([[[5, low], [5, high]], [[9, 0.3], [9, 0.7]]]))


def test_splits_are_lines_of_their_own(tmp_path: Path, figures: list[Figure]) -> None:
    header = {"kind": "eval", "stage": "sft", "step": 1}
    shown = [(5, 0.25, "dev"), (5, 0.5, "test"), (9, 0.3, "dev"), (9, 0.6, "test"), (9, 0.1, "odd")]
    rows = [header | {"global_step": step, "eval/pass_rate": rate, "split": split} for step, rate, split in shown]
    plot_curves({"run": rows}, tmp_path / "c.png")
    (axis,) = figures[0].axes
    assert axis.get_title(loc="left") == "Held-out pass rate  ● dev  ◆ odd  ■ test"
    lines = [(line.get_marker(), line.get_xydata().tolist()) for line in axis.lines]
    assert lines == [("o", [[5, 0.25], [9, 0.3]]), ("D", [[9, 0.1]]), ("s", [[5, 0.5], [9, 0.6]])]


def test_long_curves_are_smoothed_within_the_stage(tmp_path: Path, figures: list[Figure]) -> None:
    values = [float(step % 2) for step in range(200)]
    plot_curves({"run": train_rows("rl", 1, values)}, tmp_path / "c.png")
    thick, thin = sorted(axis_of(figures[0], "Training reward, mean").lines, key=lambda line: -line.get_linewidth())
    assert list(thin.get_ydata()) == values
    middle = np.array(thick.get_ydata()[20:-20])
    assert np.abs(middle - 0.5).max() < 0.1
    assert thick.get_ydata()[0] == values[0]


def test_seeds_have_mean_and_band(tmp_path: Path, figures: list[Figure]) -> None:
    seeds = [train_rows("rl", 1, [base, base + 1.0]) for base in (0.1, 0.2, 0.4)]
    shorter = [train_rows("rl", 1, [5.0, 6.0]), train_rows("rl", 1, [7.0])]
    plot_seeds({"a": seeds, "b": shorter}, tmp_path / "s.png")
    axis = axis_of(figures[0], "Training reward, mean")
    means = [line.get_xydata().tolist() for line in axis.lines if line.get_linewidth() == 2.0]
    expected = [mean_interval([0.1, 0.2, 0.4]), mean_interval([1.1, 1.2, 1.4])]
    assert np.array(means[0]) == pytest.approx(np.array([[1, expected[0].value], [2, expected[1].value]]))
    # Step 2 of the second arm has one seed of two: no mean there.
    assert means[1] == [[1, 6.0]]
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((expected[0].low, expected[1].high))
    # The axis follows the seeds (at most 7), not the band of two of them (18.7).
    assert mean_interval([5.0, 7.0]).high > 18
    assert 7 < axis.get_ylim()[1] < 8.5


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    for rows in ([], train_rows("rl", 1, [math.nan])):
        with pytest.raises(ValueError, match=r"^runs: expected at least one logged figure"):
            plot_curves({"run": rows}, tmp_path / "c.png")
    assert not os.listdir(tmp_path)


def test_one_point_and_constant_curves_have_an_axis(tmp_path: Path, figures: list[Figure]) -> None:
    plot_curves({"run": train_rows("rl", 7, [0.0])}, tmp_path / "c.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 0 < high
    assert axis_of(figures[0], "Training reward, mean").lines[0].get_marker() == "o"


def test_figures_over_magnitudes_are_logarithmic_but_for_an_outlier(tmp_path: Path, figures: list[Figure]) -> None:
    wide = [10.0 ** (step / 20 - 3) for step in range(100)]
    outlier = [1.0] * 99 + [1e-4]
    for values in (wide, outlier):
        plot_curves({"run": train_rows("rl", 1, values, "optim/grad_norm")}, tmp_path / "c.png")
    assert [figure.axes[0].get_yscale() for figure in figures] == ["log", "linear"]
