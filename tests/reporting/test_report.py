"""The page: everything there, nothing executable, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aapa.engine.errors import UserError
from aapa.engine.metrics import MetricsLog, Sample, SampleLog, ScoredSentence
from aapa.engine.report import arms_of, load_runs, write_report

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page read back: fails on unbalanced tags, keeps text, attributes and the text of each element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.spans: list[tuple[dict[str, str], str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "span":
            self.spans.append((values, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "span":
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def assert_self_contained(page: Page, source: str) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:image/png;base64,") or name not in attributes
    assert "url(" not in source
    assert "@import" not in source
    assert any("default-src 'none'" in values.get("content", "") for _, values in page.tags)


def test_one_run(make_run: Any) -> None:
    run_dir = make_run("grpo", seed=3)
    path = write_report([run_dir])
    assert path == run_dir.resolve() / "report.html"
    page = page_of(path)
    assert_self_contained(page, path.read_text())
    assert page.text.count("Run report: grpo") == 2
    row = json.loads((run_dir / "summary.json").read_text())[-1]
    (shown,) = [cells for cells in page.rows if cells[:2] == ["grpo", "rl"] and "1.23M" in cells]
    low, high = row["pass_rate_ci"]
    assert shown[2:7] == [
        f"{row['pass_rate']:.3f}",
        f"{low:.2f}–{high:.2f}",
        f"{row['in_language']:.3f}",
        f"{row['true_quality']:.3f}",
        "0.700",
    ]
    assert "All rows: seed 3, split dev, prompts 256." in page.text
    assert "Not logged: Probability ratio ρ, mean, Share of tokens clipped." in page.text
    images = [values for tag, values in page.tags if tag in ("img", "source")]
    assert len(images) == 2
    assert images[0]["media"] == "(prefers-color-scheme: dark)"
    assert images[0]["srcset"] != images[1]["src"]
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in run_dir.iterdir()) == [
        "curves.png",
        "metrics.jsonl",
        "recipe.toml",
        "report.html",
        "samples.jsonl",
        "summary.json",
    ]


def test_two_runs_are_compared(make_run: Any, tmp_path: Path) -> None:
    dirs = [make_run("grpo"), make_run("a-grpo", weight=1.0)]
    path = write_report(dirs, tmp_path / "compare" / "page.html")
    assert path == tmp_path / "compare" / "page.html"
    page = page_of(path)
    assert_self_contained(page, path.read_text())
    different = page.rows.index(["setting", "grpo", "a-grpo"])
    assert page.rows[different + 1 : different + 3] == [
        ["name", "grpo", "a-grpo"],
        ["stages.rl.objective.anchor.weight", "0.0", "1.0"],
    ]
    assert len(page.rows[different + 3]) == 3
    assert page.rows[different + 3][0] == "setting"
    assert "Over seeds" not in page.text
    assert "grpo · rl · step 80" in page.text
    assert "a-grpo · rl · step 80" in page.text
    assert not dirs[0].joinpath("report.html").exists()


def test_phase_times_are_summed_by_stage(make_run: Any) -> None:
    page = page_of(write_report([make_run("grpo")]))
    (line,) = [cells for cells in page.rows if cells[:2] == ["grpo", "rl"] and len(cells) == 9]
    # 80 steps of 1.43 s: 0.9, 0.05, 0.12 and 0.31 s in phases, the rest in none.
    assert line[2] == "1:54"
    assert line[4:] == ["1:1263%", "4.0 s3%", "9.6 s8%", "24.8 s22%", "4.0 s3%"]
    (line,) = [cells for cells in page.rows if cells[:2] == ["grpo", "sft"] and len(cells) == 9]
    assert line[2] == "0:18"
    assert line[4:] == ["–", "–", "–", "15.5 s86%", "2.5 s14%"]
    assert [
        "run",
        "stage",
        "in all",
        "phases",
        "rollout",
        "reward",
        "scoring",
        "update",
        "other",
    ] in page.rows


def test_seeds_are_summarised(make_run: Any) -> None:
    arms = (("grpo", 0.0), ("a-grpo", 1.0))
    dirs = [make_run(f"{arm}-s{seed}", seed, weight, arm) for arm, weight in arms for seed in (0, 1, 2)]
    page = page_of(write_report(dirs))
    rates = {
        arm: [json.loads((run / "summary.json").read_text())[-1]["pass_rate"] for run in dirs if arm in run.name[:4]]
        for arm in ("grpo", "a-gr")
    }
    mean = sum(rates["grpo"]) / 3
    assert any(cells[:3] == ["grpo", "rl", "3"] and cells[3].startswith(f"{mean:.3f}") for cells in page.rows)
    difference = sum(rates["a-gr"]) / 3 - mean
    (line,) = [cells for cells in page.rows if cells[:3] == ["a-grpo", "grpo", "3"]]
    assert line[3].startswith(f"{difference:+.3f}")
    assert list(arms_of(load_runs(dirs))) == ["grpo", "a-grpo"]
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2
    assert (dirs[0] / "seeds.png").is_file()


HOSTILE = (
    "</p><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" https://example.org/a.js \x00\x1b[31m"
)


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    run_dir = tmp_path / "run <b>&"
    with SampleLog(run_dir) as log:
        sentences = (ScoredSentence(HOSTILE, -2.5), ScoredSentence("</span>" + HOSTILE, None))
        log.write(Sample("<i>rl</i>", 1, HOSTILE, HOSTILE, HOSTILE, 1.0, True, sentences))
        log.write(Sample("<i>rl</i>", 1, "plain" + HOSTILE, HOSTILE, None, None, None))
    with MetricsLog(run_dir, tensorboard=False) as metrics:
        metrics.write("train", "</td><script>", 1, 1, {"time/<script>": 1.0, "loss/total": 1.0})
    (run_dir / "summary.json").write_text(json.dumps([{"name": HOSTILE, "stage": HOSTILE, "pass_rate": 0.5}]))
    (run_dir / "recipe.toml").write_text('name = "<script>x</script>"\n"<script>" = "</code>"\n')
    path = write_report([run_dir])
    source = path.read_text()
    page = Page(source)
    assert_self_contained(page, source)
    assert "<script" not in source.lower()
    assert page.text.count("<script>alert('x')</script>") >= 6
    assert "\x00" not in source
    assert "\x1b" not in source


def test_sentences_are_coloured_by_score(tmp_path: Path) -> None:
    scores = [(" Bad.", -3.0), (" Middling.", -0.5), (" Good.", 2.0), (" Beyond.", 9.0), (" Skipped.", None)]
    with SampleLog(tmp_path / "run") as log:
        sentences = tuple(ScoredSentence(text, score) for text, score in scores)
        log.write(Sample("rl", 1, "p", "x", "The expert.", 0.5, True, sentences))
    page = page_of(write_report([tmp_path / "run"]))
    shown = {text: values for values, text in page.spans if text in dict(scores)}
    strength = {
        text: float(values["style"].removeprefix("--a:")) for text, values in shown.items() if "style" in values
    }
    assert [shown[text]["class"].split()[-1] for text, _ in scores] == [
        "minus",
        "minus",
        "plus",
        "plus",
        "none",
    ]
    assert strength[" Middling."] < strength[" Good."] < strength[" Bad."] == strength[" Beyond."]
    assert shown[" Bad."]["title"] == "anchor score -3.00"
    assert " Skipped." not in strength
    assert "The expert." in page.text
    assert "✓ passed" in page.text


def test_only_the_last_samples_of_a_stage_are_shown(tmp_path: Path) -> None:
    with SampleLog(tmp_path / "run") as log:
        for step in (10, 20):
            for number in range(30):
                response = f"written at {step} by {number}"
                log.write(Sample("rl", step, f"prompt {number}", response, None, None, False))
    text = page_of(write_report([tmp_path / "run"])).text
    assert "written at 20 by 0" in text
    assert "written at 10" not in text
    assert "6 more prompts are in samples.jsonl." in text
    assert text.count("No expert response.") == 24


def test_missing_pieces_are_said(tmp_path: Path) -> None:
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "recipe.toml").write_text('name = "young"\n')
    text = page_of(write_report([tmp_path / "young"])).text
    assert "not there: summary.json, metrics.jsonl, samples.jsonl" in text
    for said in ("no summary.json yet", "nothing logged yet", "No phase times", "young: no samples."):
        assert said in text


def test_values_that_are_not_finite_are_said(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", tensorboard=False) as log:
        for step, loss in enumerate([1.0, float("nan"), float("inf")]):
            log.write("train", "rl", step, step, {"loss/total": loss, "reward/mean": 0.0})
    text = page_of(write_report([tmp_path / "run"])).text
    assert "run: not finite: loss/total (2 rows)." in text


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda run: None, "run: expected a run directory, got nothing"),
        (lambda run: run.write_text("x"), "run: expected a run directory, got a file"),
        (lambda run: run.mkdir(), "run: expected a run directory with summary.json.*got none of them"),
    ],
)
def test_bad_directories_are_named(tmp_path: Path, prepare: Any, said: str) -> None:
    prepare(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        write_report([tmp_path / "run"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", "[{]", r"summary\.json: expected JSON"),
        ("summary.json", '{"name": 1}', r"summary\.json: expected a list of objects, got dict"),
        ("summary.json", '[{"pass_rate": "high"}]', r"summary\.json: pass_rate: expected .*, got 'high'"),
        ("summary.json", '[{"pass_rate_ci": [0.1]}]', r"summary\.json: pass_rate_ci: expected"),
        ("recipe.toml", "name = ", r"recipe\.toml: expected TOML"),
        ("metrics.jsonl", "{}\n", r"metrics\.jsonl:1: expected the key 'kind'"),
        ("samples.jsonl", "nonsense\n", r"samples\.jsonl:1: expected a JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        write_report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_the_same_run_twice_are_refused(make_run: Any) -> None:
    with pytest.raises(UserError, match="at least one run directory"):
        write_report([])
    run_dir = make_run("grpo")
    with pytest.raises(UserError, match="got this one 2 times"):
        write_report([run_dir, run_dir / ".." / run_dir.name])


def test_runs_of_one_name_are_told_apart(make_run: Any, tmp_path: Path) -> None:
    dirs = [make_run("first/run"), make_run("second/run")]
    assert [run.name for run in load_runs(dirs)] == ["first/run", "second/run"]
    path = write_report(dirs, tmp_path)
    assert path == tmp_path / "report.html"


def test_a_report_needs_no_torch(make_run: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from aapa.engine.report import write_report; "
        f"write_report([Path({str(make_run('grpo'))!r})]); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False"]
