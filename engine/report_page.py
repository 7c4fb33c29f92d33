"""The HTML page of a report: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aapa.engine.metrics import SAMPLES_FILE, Sample, ScoredSentence
from aapa.engine.plots import Theme, absent_panels, plot_curves, plot_seeds
from aapa.engine.progress import format_duration
from aapa.engine.report import (
    CURVES_FILE,
    NOTHING,
    SEEDS_FILE,
    SUMMARY_FILE,
    Run,
    Table,
    arms_of,
    lay_out,
    seed_differences,
    seed_rows,
)
from aapa.engine.report_style import STYLE
from aapa.engine.statistics import Estimate

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SATURATED = 3.0  # anchor scores are clipped here (METHOD 3.1): full colour
_PROMPTS_SHOWN = 24
_PHASES = ("rollout", "reward", "scoring", "update", "weights")
_HEADINGS = {
    "pass_rate": "constraints met",
    "in_language": "in language",
    "true_quality": "both",
    "proxy_reward": "proxy reward",
    "length_ratio": "length ratio",
    "distinct_2": "distinct-2",
}


def render_page(runs: Sequence[Run], pictures: Path) -> str:
    """The whole page as text; the curves are also written as PNG into the folder `pictures`."""
    title = "Run report: " + ", ".join(run.name for run in runs)
    sections = [
        _section("Results", _results(runs)),
        _section("Over seeds", _over_seeds(_all_rows(runs))),
        _section("Curves", _curves(runs, pictures)),
        _section("Recipes", _recipes(runs)),
        _section("Where the time went", _phase_times(runs)),
        _section("Samples", _samples(runs)),
    ]
    # The policy makes the promise binding: even a hole in the escaping could neither load nor run anything.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><header><h1>{_text(title)}</h1>{_directories(runs)}</header>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


def _text(value: Any) -> str:
    """Escaped text; control characters, which HTML cannot carry, become visible replacements."""
    return escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{content}</section>" if content else ""


def _notice(text: str) -> str:
    return f'<p class="notice">{_text(text)}</p>'


def _directories(runs: Sequence[Run]) -> str:
    items = []
    for run in runs:
        said = f" – rows of one's own: {run.rows['rows']}, set aside: {run.rows['set_aside']}" if run.rows else ""
        said += f" – not there: {', '.join(run.missing)}" if run.missing else ""
        items.append(f"<li><code>{_text(run.directory)}</code>{_text(said)}</li>")
    return f'<ul class="plain">{"".join(items)}</ul>'


def _all_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Summary rows of all runs; the run's name is added where it says more than the policy's."""
    tell = len(runs) > 1 and any(row.get("name") != run.name for run in runs for row in run.summary)
    return [({"run": run.name} if tell else {}) | row for run in runs for row in run.summary]


def _results(runs: Sequence[Run]) -> str:
    rows = _all_rows(runs)
    notices = "".join(
        _notice(f"{run.name}: no {SUMMARY_FILE} yet; it is written when the first stage has been evaluated.")
        for run in runs
        if not run.summary
    )
    return (_summary_table(lay_out(rows)) if rows else "") + notices


def _summary_table(table: Table) -> str:
    # A heading may break at its spaces, not at its hyphens.
    names = [column.heading.replace("-", "\u2011") for column in table.columns]
    heads = [
        ("t" if column.text else "n", name, column.meaning) for name, column in zip(names, table.columns, strict=True)
    ]
    body = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        shown = [_text(cell) for cell in cells]
        for place, column in enumerate(table.columns):
            if column.key == "pass_rate_ci" and cells[place] != NOTHING:
                shown[place] = _interval_bar(row) + shown[place]
        body.append(shown)
    notes = "".join(f'<p class="note">{_text(note[0].upper() + note[1:])}.</p>' for note in table.notes)
    return _table(heads, body) + notes


def _table(heads: Sequence[tuple[str, str, str]], body: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways: heads are (class, heading, explanation), cells are HTML already."""
    head = "".join(
        f'<th scope="col" class="{kind}" title="{_text(meaning)}">{_text(heading)}</th>'
        for kind, heading, meaning in heads
    )
    lines = []
    for cells in body:
        tds = (f'<td class="{kind}">{cell}</td>' for (kind, _, _), cell in zip(heads, cells, strict=True))
        lines.append(f"<tr>{''.join(tds)}</tr>")
    body_html = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body_html}</tbody></table></div>'


def _interval_bar(row: Mapping[str, Any]) -> str:
    """The interval on a rule from 0 to 1, so that rows can be compared at a glance."""
    low, high = (100 * min(max(bound, 0.0), 1.0) for bound in row["pass_rate_ci"])
    rate = row.get("pass_rate")
    dot = f'<i style="left:{100 * rate:.1f}%"></i>' if isinstance(rate, int | float) and 0 <= rate <= 1 else ""
    return f'<span class="ci"><b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>{dot}</span>'


def _over_seeds(rows: Sequence[Mapping[str, Any]]) -> str:
    means, differences = seed_rows(rows), seed_differences(rows)
    content = ""
    if means:
        content += '<p class="note">Mean over seeds, 95 % t interval below it.</p>'
        content += _estimates(means, {"policy": "name", "stage": "stage", "seeds": "seeds"})
    if differences:
        content += '<p class="note">Difference after the last stage, paired by seed, 95 % t interval below it.</p>'
        content += _estimates(differences, {"policy": "name", "against": "against", "seeds": "seeds"}, "+")
    return content


def _estimates(rows: Sequence[Mapping[str, Any]], lead: Mapping[str, str], sign: str = "") -> str:
    """A table of estimates; `lead` maps the first headings to the keys they show."""
    keys = [key for key in _HEADINGS if any(key in row["figures"] for row in rows)]
    heads = [("t", heading, "") for heading in lead] + [("n", _HEADINGS[key], "") for key in keys]
    body = [
        [_text(row[key]) for key in lead.values()] + [_estimate(row["figures"].get(key), sign) for key in keys]
        for row in rows
    ]
    return _table(heads, body)


def _estimate(estimate: Estimate | None, sign: str) -> str:
    if estimate is None:
        return NOTHING
    value, low, high = (format(number, f"{sign}.3f") for number in estimate)
    return f"{value}<small>{low} to {high}</small>"


def _curves(runs: Sequence[Run], pictures: Path) -> str:
    curves = {run.name: run.metrics for run in runs}
    notices = "".join(_notice(f"{run.name}: nothing logged yet.") for run in runs if not run.metrics)
    absent = absent_panels(curves)
    shown = {name: rows for name, rows in curves.items() if len(absent_panels({name: rows})) < len(absent_panels({}))}
    if not shown:
        return notices or _notice("Nothing that could be drawn has been logged yet.")
    content = _picture(lambda path, theme: plot_curves(shown, path, theme=theme), pictures / CURVES_FILE, "curves")
    note = "Thin: as logged. Thick: running mean within a stage. Dotted: a stage begins. Bars: 95 % interval."
    content += f'<p class="note">{note}{_text(" Not logged: " + ", ".join(absent) + "." if absent else "")}</p>'
    arms = arms_of(runs)
    if any(len(members) > 1 for members in arms.values()):
        rows = {name: [run.metrics for run in members] for name, members in arms.items()}
        content += '<h3>Over seeds</h3><p class="note">Runs whose recipes differ in the seed alone. '
        content += "Thin: a seed. Thick: the mean. Band: 95 % t interval.</p>"
        content += _picture(lambda path, theme: plot_seeds(rows, path, theme=theme), pictures / SEEDS_FILE, "seeds")
    return content + notices + _gaps(runs)


def _gaps(runs: Sequence[Run]) -> str:
    """Figures that were not finite somewhere: a fault one should not have to look for."""
    notices = []
    for run in runs:
        counts: dict[str, int] = {}
        for row in run.metrics:
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    counts[key] = counts.get(key, 0) + 1
        if counts:
            said = ", ".join(f"{key} ({count} rows)" for key, count in sorted(counts.items()))
            notices.append(_notice(f"{run.name}: not finite: {said}."))
    return "".join(notices)


def _picture(draw: Callable[[Path, Theme], Path], path: Path, alt: str) -> str:
    """Draw for a light and a dark page; the light one stays as a file."""
    light = base64.b64encode(draw(path, "light").read_bytes()).decode()
    with tempfile.TemporaryDirectory() as folder:
        dark = base64.b64encode(draw(Path(folder) / path.name, "dark").read_bytes()).decode()
    source = f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
    return f'<picture>{source}<img alt="{_text(alt)}" src="data:image/png;base64,{light}"></picture>'


def _recipes(runs: Sequence[Run]) -> str:
    flat = {run.name: _settings(run.recipe) for run in runs if run.recipe is not None}
    if not flat:
        return _notice("No recipe in the run directories.")
    content = "".join(_notice(f"{run.name}: no recipe.") for run in runs if run.recipe is None)
    keys = list(dict.fromkeys(key for recipe in flat.values() for key in recipe))
    if len(flat) > 1:
        different = [key for key in keys if len({recipe.get(key) for recipe in flat.values()}) > 1]
        content += _recipe_table(flat, different) if different else _notice("The recipes are equal.")
    return content + f"<details><summary>All settings</summary>{_recipe_table(flat, keys)}</details>"


def _recipe_table(flat: Mapping[str, Mapping[str, str]], keys: Sequence[str]) -> str:
    body = [
        [f"<code>{_text(key)}</code>", *(_text(recipe.get(key, NOTHING)) for recipe in flat.values())] for key in keys
    ]
    return _table([("w", name, "") for name in ("setting", *flat)], body)


def _settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Dotted settings without those of a task where the rows are one's own: the default names one."""
    flat, data = _flatten(recipe), recipe.get("data", {})
    own = isinstance(data, dict) and (data.get("files") or data.get("dataset"))
    return {key: value for key, value in flat.items() if not (own and key == "data.task")}


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted settings; tables in a list go by their name: an inserted stage does not shift all others."""
    if isinstance(value, dict):
        named = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        named = [(str(item.get("name", place)), item) for place, item in enumerate(value)]
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for name, item in named:
        flat |= _flatten(item, f"{prefix}.{name}" if prefix else name)
    return flat


def _phase_times(runs: Sequence[Run]) -> str:
    sums = {(run.name, stage): phases for run in runs for stage, phases in _phase_sums(run).items()}
    if not sums:
        return _notice("No phase times have been logged.")
    named = list(dict.fromkeys([*_PHASES, *(phase for phases in sums.values() for phase in phases)]))
    phases = [phase for phase in named if any(phase in of_stage for of_stage in sums.values())]
    longest = max(sum(of_stage.values()) for of_stage in sums.values()) or 1.0
    legend = "".join(f'<span class="key p{i % 6}">{_text(phase)}</span>' for i, phase in enumerate(phases))
    heads = [("t", "run", ""), ("t", "stage", ""), ("n", "in all", ""), ("t", "phases", "")]
    body = []
    for (run_name, stage), of_stage in sums.items():
        bar = "".join(
            f'<b class="p{i % 6}" style="width:{100 * of_stage.get(phase, 0.0) / longest:.2f}%"></b>'
            for i, phase in enumerate(phases)
        )
        total = format_duration(sum(of_stage.values()))
        lead = [_text(run_name), _text(stage), total, f'<span class="phases">{bar}</span>']
        body.append(lead + [_share(of_stage.get(phase), of_stage) for phase in phases])
    table = _table(heads + [("n", phase, "") for phase in phases], body)
    return f'<p class="legend">{legend}</p>{table}'


def _phase_sums(run: Run) -> dict[str, dict[str, float]]:
    """Stage → phase → seconds; what of "time/step" is in no phase goes by the name "other"."""
    sums: dict[str, dict[str, float]] = {}
    for row in run.metrics:
        for key, value in row.items():
            if key == "time/anchor_share":  # of the step, no seconds
                continue
            if key.startswith("time/") and isinstance(value, int | float) and math.isfinite(value):
                phases = sums.setdefault(row["stage"], {})
                phase = key.removeprefix("time/")
                phases[phase] = phases.get(phase, 0.0) + value
    for phases in sums.values():
        if "step" in phases:
            phases["other"] = max(phases.pop("step") - sum(phases.values()), 0.0)
    return sums


def _share(seconds: float | None, phases: Mapping[str, float]) -> str:
    total = sum(phases.values())
    if seconds is None or total <= 0:
        return NOTHING
    shown = format_duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"
    return f"{shown}<small>{seconds / total:.0%}</small>"


def _samples(runs: Sequence[Run]) -> str:
    content = "".join(_notice(f"{run.name}: no samples.") for run in runs if not run.samples)
    prompts: dict[str, list[tuple[str, Sample]]] = {}
    for run in runs:
        for sample in _latest(run.samples):
            prompts.setdefault(sample.prompt, []).append((run.name, sample))
    if not prompts:
        return content
    # Prompts that most policies answered come first: they compare.
    order = sorted(prompts, key=lambda prompt: -len(prompts[prompt]))
    cards = "".join(_card(prompt, prompts[prompt], len(runs) > 1) for prompt in order[:_PROMPTS_SHOWN])
    left = len(order) - _PROMPTS_SHOWN
    if left > 0:
        cards += _notice(f"{left} more prompts are in {SAMPLES_FILE}.")
    return content + _scale() + cards


def _latest(samples: Iterable[Sample]) -> list[Sample]:
    """Of each stage the samples of its last sampled step."""
    by_stage: dict[str, list[Sample]] = {}
    for sample in samples:
        seen = by_stage.setdefault(sample.stage, [])
        if seen and seen[0].step < sample.step:
            seen.clear()
        if not seen or seen[0].step == sample.step:
            seen.append(sample)
    return [sample for of_stage in by_stage.values() for sample in of_stage]


def _scale() -> str:
    marks = "".join(f"{_sentence(ScoredSentence(f' {score:+.0f} ', float(score)))} " for score in range(-3, 4))
    unjudged = _sentence(ScoredSentence(" not judged ", None))
    return (
        '<p class="legend">Anchor score of a sentence, far from the expert (−) to like the expert (+): '
        f"<span>{marks}</span>{unjudged} Point at a sentence for its score.</p>"
    )


def _card(prompt: str, answers: Sequence[tuple[str, Sample]], several_runs: bool) -> str:
    experts = list(dict.fromkeys(sample.expert for _, sample in answers if sample.expert is not None))
    shown = "".join(f'<p class="say">{_text(expert)}</p>' for expert in experts) or _notice("No expert response.")
    responses = "".join(_response(name if several_runs else "", sample) for name, sample in answers)
    return (
        f'<article><p class="prompt">{_text(prompt)}</p><div class="pair">'
        f'<div class="expert"><h4>Expert</h4>{shown}</div><div>{responses}</div></div></article>'
    )


def _response(run_name: str, sample: Sample) -> str:
    where = " · ".join(filter(None, (run_name, sample.stage, f"step {sample.step}")))
    badge = ""
    if sample.passed is not None:
        badge = '<span class="yes">✓ passed</span>' if sample.passed else '<span class="no">✗ failed</span>'
    reward = f'<span class="reward">reward {sample.reward:.3g}</span>' if sample.reward is not None else ""
    said = "".join(_sentence(sentence) for sentence in sample.sentences) or _text(sample.response)
    said = said or '<span class="empty">(empty response)</span>'
    return f'<div class="response"><h4>{_text(where)} {badge} {reward}</h4><p class="say">{said}</p></div>'


def _sentence(sentence: ScoredSentence) -> str:
    if sentence.score is None:
        return f'<span class="s none" title="not judged by the anchor">{_text(sentence.text)}</span>'
    strength = 0.06 + 0.5 * min(abs(sentence.score) / _SATURATED, 1.0)
    side = "minus" if sentence.score < 0 else "plus"
    title = f"anchor score {sentence.score:+.2f}"
    return f'<span class="s {side}" style="--a:{strength:.2f}" title="{title}">{_text(sentence.text)}</span>'
