"""Curves of runs as small multiples, drawn off screen; matplotlib is loaded when something is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aapa.engine.statistics import mean_interval, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One small multiple: its title, the metric, which rows carry it, and whether it is missed where it is absent."""

    title: str
    key: str
    kind: Literal["train", "eval"] = "train"
    optional: bool = False


PANELS = (
    Panel("Training reward, mean", "reward/mean"),
    Panel("Held-out pass rate", "eval/pass_rate", "eval"),
    Panel("Held-out reward, mean", "eval/reward", "eval", optional=True),
    Panel("Held-out experts' log-prob", "eval/expert_logprob", "eval", optional=True),
    Panel("Held-out length, over expert's", "eval/length_ratio", "eval", optional=True),
    Panel("Anchor score, mean", "anchor/mean"),
    Panel("Entropy (nats per token)", "policy/entropy"),
    Panel("Response length (tokens)", "response/length"),
    Panel("Share of responses cut off at the limit", "response/truncated", optional=True),
    Panel("Share of groups of equal rewards", "reward/zero_variance", optional=True),
    Panel("Share of samples without a reward", "reward/masked", optional=True),
    Panel("KL from the sampling policy (nats per token)", "policy/kl"),
    Panel("KL from the reference (nats per token)", "policy/kl_ref", optional=True),
    Panel("Rollout engine's probability error, mean", "rollout/prob_error", optional=True),
    Panel("Coefficient μ of the SFT loss", "chord/mu", optional=True),
    Panel("Probability ratio ρ, mean", "policy/ratio"),
    Panel("Share of tokens clipped", "policy/clip_fraction"),
    Panel("Gradient norm", "optim/grad_norm"),
    Panel("Loss", "loss/total"),
)

# Okabe and Ito's palette, told apart with any kind of colour vision; the dark set is the same hues, lighter.
_COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B07C00", "#555555"),
    "dark": ("#4FA8E0", "#F08A3C", "#2FBF94", "#E39AC4", "#9AD2F5", "#F0C04A", "#BBBBBB"),
}
_DASHES = ("-", "--", "-.", ":")
_INK = {
    "light": ("#ffffff", "#1b1e24", "#6b7280", "#e3e6ea"),
    "dark": ("#171a21", "#e6e8ec", "#9aa3b2", "#2c323d"),
}
# Marker of the points of a split, and the same as a character.
_SPLITS = {"dev": ("o", "●"), "test": ("s", "■"), "held_out": ("^", "▲"), "": ("o", "●")}
_OTHER_SPLIT = ("D", "◆")
_COLUMNS = 3
_DPI = 130
_SMOOTH_FROM = 40  # points; below, the points themselves are the curve

Theme = Literal["light", "dark"]


def absent_panels(runs: Mapping[str, Rows]) -> list[str]:
    """Titles of the panels for which no run has logged a finite value; `plot_curves` leaves them out.

    Optional ones belong to some objectives only and are left out without a word.
    """
    absent = (panel for panel in PANELS if not any(_points(rows, panel) for rows in runs.values()))
    return [panel.title for panel in absent if not panel.optional]


def plot_curves(runs: Mapping[str, Rows], path: Path, *, theme: Theme = "light") -> Path:
    """Draw the curves of all runs over each other, one panel a figure, with stage boundaries.

    Long curves are drawn twice: thin as logged, thick as a running mean within the stage. The pass rate
    carries its interval ("eval/pass_rate_low" and "_high", else Wilson's from "eval/prompts"), and each
    "split" has its own line.

    Args:
        runs: name to rows of metrics.jsonl, in the order of the legend.
        path: PNG to write.
        theme: colours for a light or a dark page.

    Raises:
        ValueError: no run has logged anything that could be drawn.
    """
    panels = [panel for panel in PANELS if any(_points(rows, panel) for rows in runs.values())]
    figure, axes, styles = _grid(panels, list(runs), theme)
    for panel, axis in zip(panels, axes, strict=True):
        for rows, (colour, dash) in zip(runs.values(), styles, strict=True):
            _draw_run(axis, rows, panel, colour, dash)
        _finish(axis, panel, list(runs.values()), theme)
    return _save(figure, path)


def plot_seeds(arms: Mapping[str, Sequence[Rows]], path: Path, *, theme: Theme = "light") -> Path:
    """Draw arms of several seeds each: thin the seeds, thick their mean, as a band its 95 % t interval.

    Mean and band are drawn at the steps every seed of the arm has; the axes follow the seeds, so that the
    wide interval of two or three seeds runs out of the panel rather than flattening it.

    Args:
        arms: name of the arm to the rows of each of its seeds.
        path: PNG to write.
        theme: colours for a light or a dark page.

    Raises:
        ValueError: no seed has logged anything that could be drawn.
    """
    everything = [rows for seeds in arms.values() for rows in seeds]
    panels = [panel for panel in PANELS if any(_points(rows, panel) for rows in everything)]
    names = [f"{name} (n = {len(seeds)})" for name, seeds in arms.items()]
    figure, axes, styles = _grid(panels, names, theme)
    for panel, axis in zip(panels, axes, strict=True):
        for seeds, (colour, dash) in zip(arms.values(), styles, strict=True):
            _draw_arm(axis, seeds, panel, colour, dash)
        _finish(axis, panel, everything, theme)
    return _save(figure, path)


@dataclass(frozen=True)
class _Point:
    """A value at a step; `part` is the line it belongs to: its stage, or the split of an evaluation."""

    step: int
    value: float
    part: str
    low: float = math.nan
    high: float = math.nan


def _points(rows: Rows, panel: Panel) -> list[_Point]:
    """The finite values of one metric, part by part; of a step logged twice the last counts."""
    points: dict[tuple[str, int], _Point] = {}
    for row in rows:
        value = row.get(panel.key)
        if row.get("kind") != panel.kind or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        step = row["global_step"]
        # Stages follow each other, splits are evaluated side by side.
        split = str(row.get("split", "")) if panel.kind == "eval" else ""
        part = row["stage"] if panel.kind == "train" else split
        points[split, step] = _Point(step, value, part, *_bounds(row, panel.key, value))
    return [points[place] for place in sorted(points)]


def _bounds(row: Mapping[str, Any], key: str, value: float) -> tuple[float, float]:
    """The interval of a pass rate as logged, else by Wilson from the number of prompts, else NaN."""
    if key != "eval/pass_rate":
        return math.nan, math.nan
    low, high = row.get("eval/pass_rate_low"), row.get("eval/pass_rate_high")
    if isinstance(low, int | float) and isinstance(high, int | float):
        return low, high
    prompts = row.get("eval/prompts")
    if isinstance(prompts, int | float) and prompts >= 1 and 0 <= value <= 1:
        return wilson_interval(round(value * prompts), round(prompts))
    return math.nan, math.nan


def _draw_run(axis: Axes, rows: Rows, panel: Panel, colour: str, dash: str) -> None:
    points = _points(rows, panel)
    smooth = points if panel.kind == "eval" else _smoothed(points)
    for part in _parts(smooth):
        steps = [point.step for point in part]
        axis.plot(steps, [point.value for point in part], dash, color=colour, lw=1.7, **_marker(part, panel))
    bounded = [point for point in points if math.isfinite(point.low + point.high)]
    if bounded:
        where, low, high = zip(*((point.step, point.low, point.high) for point in bounded), strict=True)
        axis.vlines(where, low, high, color=colour, alpha=0.55, lw=1.2)
    if smooth != points:
        for part in _parts(points):
            axis.plot([p.step for p in part], [p.value for p in part], color=colour, lw=0.7, alpha=0.3)


def _draw_arm(axis: Axes, arm: Sequence[Rows], panel: Panel, colour: str, dash: str) -> None:
    seeds = [points for rows in arm if (points := _points(rows, panel))]
    if not seeds:
        return
    if panel.kind == "train":
        seeds = [_smoothed(points) for points in seeds]
    for points in seeds:
        for part in _parts(points):
            axis.plot([p.step for p in part], [p.value for p in part], color=colour, lw=0.7, alpha=0.35)
    values = [{(point.part, point.step): point.value for point in points} for points in seeds]
    shared = [point for point in seeds[0] if all((point.part, point.step) in seed for seed in values)]
    for part in _parts(shared):
        steps = [point.step for point in part]
        estimates = [mean_interval([seed[point.part, point.step] for seed in values]) for point in part]
        means, low, high = zip(*estimates, strict=True)
        axis.plot(steps, means, dash, color=colour, lw=2.0, **_marker(part, panel))
        if len(values) > 1:
            axis.fill_between(steps, low, high, color=colour, alpha=0.16, lw=0)


def _marker(part: Sequence[_Point], panel: Panel) -> dict[str, Any]:
    """Evaluations are points, told apart by split; a line through one point alone is invisible."""
    if panel.kind == "eval":
        return {"marker": _SPLITS.get(part[0].part, _OTHER_SPLIT)[0], "markersize": 3.5}
    return {"marker": "o", "markersize": 3.5} if len(part) == 1 else {}


def _parts(points: Sequence[_Point]) -> list[list[_Point]]:
    parts: list[list[_Point]] = []
    for point in points:
        if not parts or parts[-1][-1].part != point.part:
            parts.append([])
        parts[-1].append(point)
    return parts


def _smoothed(points: list[_Point]) -> list[_Point]:
    """Centred running mean over about a twentieth of the stage; it never mixes two stages."""
    smooth = []
    for stage in _parts(points):
        half = len(stage) // 40 if len(stage) >= _SMOOTH_FROM else 0
        sums = [0.0]
        for point in stage:
            sums.append(sums[-1] + point.value)
        for place, point in enumerate(stage):
            # The window shrinks at both ends alike, so that the ends are not pulled inwards.
            reach = min(half, place, len(stage) - 1 - place)
            mean = (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)
            smooth.append(replace(point, value=mean) if reach else point)
    return smooth


def _stage_starts(everything: Sequence[Rows]) -> dict[int, str]:
    """Global step at which a stage begins → its name; names of several runs at one step are joined."""
    starts: dict[int, list[str]] = {}
    for rows in everything:
        first: dict[str, int] = {}
        for row in rows:
            if row.get("kind") == "train":
                first.setdefault(row["stage"], row["global_step"])
        for stage, step in first.items():
            names = starts.setdefault(step, [])
            if stage not in names:
                names.append(stage)
    return {step: " / ".join(names) for step, names in sorted(starts.items())}


def _grid(
    panels: Sequence[Panel], names: Sequence[str], theme: Theme
) -> tuple[Figure, list[Axes], list[tuple[str, str]]]:
    """A figure with one empty panel each, the legend of the names, and their (colour, dash)."""
    if not panels:
        raise ValueError("runs: expected at least one logged figure to draw, got none")
    # The object interface with its own canvas: no global backend or state of pyplot is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    per_line = max(1, int(columns * 40 / (max(map(len, names)) + 8)))
    header = 0.1 + (0.22 * math.ceil(len(names) / per_line) if len(names) > 1 else 0.0)
    width, height = 4.0 * columns, 2.45 * lines + header
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_INK[theme][0])
    FigureCanvasAgg(figure)
    # Margins in inches: matplotlib's own layout engine takes longer than the drawing.
    figure.subplots_adjust(
        left=0.6 / width,
        right=1 - 0.2 / width,
        bottom=0.42 / height,
        top=1 - (header + 0.42) / height,
        wspace=0.6 / (4.0 - 0.8 / columns - 0.4),
        hspace=0.85 / (2.45 - 0.85 + 0.01),
    )
    styles = _styles(len(names), theme)
    if len(names) > 1:
        _legend(figure, names, styles, per_line, theme)
    axes = [_axis(figure, lines, columns, place + 1, theme) for place in range(len(panels))]
    return figure, axes, styles


def _axis(figure: Figure, lines: int, columns: int, place: int, theme: Theme) -> Axes:
    background, _, faint, line = _INK[theme]
    axis = figure.add_subplot(lines, columns, place, facecolor=background)
    axis.tick_params(which="both", colors=faint, labelsize=8.5, length=0)
    axis.grid(True, axis="y", color=line, lw=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(faint)
    return axis


def _finish(axis: Axes, panel: Panel, everything: Sequence[Rows], theme: Theme) -> None:
    """Title, limits from the curves alone (not from bands), and the stage boundaries."""
    from matplotlib.ticker import MaxNLocator

    _, ink, faint, _ = _INK[theme]
    axis.set_xlabel("step", fontsize=8.5, color=faint, labelpad=1)
    points = [point for rows in everything for point in _points(rows, panel)]
    axis.set_title(_title(panel, points), fontsize=10.5, color=ink, loc="left", pad=14, parse_math=False)
    low, high, logarithmic = _limits(points, panel)
    if logarithmic:
        axis.set_yscale("log")
    else:  # every tick whole: a common power of ten would stand where the stage's name does
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    axis.set_ylim(low, high)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    # Each panel spans the steps it has: a short last stage would be a sliver of the whole run.
    first, last = min(point.step for point in points), max(point.step for point in points)
    pad = 0.02 * (last - first) or 0.5
    axis.set_xlim(first - pad, last + pad)
    starts = _stage_starts(everything)
    begun = max((step for step in starts if step <= first), default=first)
    inside = [step for step in starts if step == begun or first < step <= last]
    for step, following in zip(inside, [*inside, math.inf][1:], strict=True):
        if step > first:
            axis.axvline(step, color=faint, lw=0.9, ls=(0, (2, 3)))
        # A letter takes about a fiftieth of the panel; a name that would run into the next is left out.
        if following - max(step, first) > 0.02 * len(starts[step]) * (last - first):
            _name_stage(axis, max(step, first), starts[step], faint)


def _title(panel: Panel, points: Sequence[_Point]) -> str:
    splits = sorted({point.part for point in points}) if panel.kind == "eval" else []
    if len(splits) < 2:
        return panel.title
    return panel.title + "  " + "  ".join(f"{_SPLITS.get(name, _OTHER_SPLIT)[1]} {name}" for name in splits)


def _limits(points: Sequence[_Point], panel: Panel) -> tuple[float, float, bool]:
    """Lower and upper end of the value axis, and whether it is logarithmic."""
    values = sorted(point.value for point in points)
    low, high = values[0], values[-1]
    if panel.key == "eval/pass_rate":
        bounds = [point.high for point in points if math.isfinite(point.high)]
        return 0.0, min(1.02, 1.1 * max([high, *bounds]) or 1.0), False
    # Judged by the middle nine tenths: one outlier does not make the rest unreadable.
    inner_low, inner_high = values[len(values) // 20], values[-1 - len(values) // 20]
    if low > 0 and inner_high > 50 * inner_low:
        return low / 1.2, high * 1.2, True
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin, False


def _name_stage(axis: Axes, step: int, name: str, colour: str) -> None:
    """Stage name above the plot area, where no curve runs."""
    axis.annotate(
        name,
        xy=(step, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=7.5,
        color=colour,
        annotation_clip=False,
        parse_math=False,
    )


def _styles(count: int, theme: Theme) -> list[tuple[str, str]]:
    colours = _COLOURS[theme]
    return [(colours[i % len(colours)], _DASHES[(i // len(colours)) % len(_DASHES)]) for i in range(count)]


def _legend(
    figure: Figure, names: Sequence[str], styles: Sequence[tuple[str, str]], per_line: int, theme: Theme
) -> None:
    from matplotlib.lines import Line2D

    legend = figure.legend(
        [Line2D([], [], color=colour, ls=dash, lw=2.2) for colour, dash in styles],
        list(names),
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=min(len(names), per_line),
        frameon=False,
        fontsize=9.5,
        labelcolor=_INK[theme][1],
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor=figure.get_facecolor())
    return path
