"""`aapa discriminator score` on rows of one's own gives the scores of the run that fitted the discriminator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from own_rows import model_directory, rows, table, write_rows

from aapa.engine.cli import main
from aapa.engine.data import tokenized
from aapa.engine.discriminator_stage import open_scorer
from aapa.engine.policy import parallel as groups
from aapa.engine.recipe import Recipe, parse_recipe
from aapa.engine.setup import open_run
from aapa.engine.trainer import train


@pytest.fixture(scope="module", params=["all", ["(", ")"]], ids=["whole", "span"])
def run(request, tmp_path_factory) -> tuple[Recipe, Path]:
    """A run of one anchored step, whose trunk's directory names another end of sequence than the chat template's."""
    folder = tmp_path_factory.mktemp("score")
    made = rows(60, chat=True)
    for row in made:
        row["expert"] = [f"(Hm. So.) {expert} It is." for expert in row["expert"]]
    found = table(
        model_directory(folder / "model", context=96), str(write_rows(folder / "rows.jsonl", made)),
        kind="grpo", steps=1, template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    (folder / "own_reward.py").write_text("def some(completions, **columns):\n    return [0.5] * len(completions)\n")
    found["stages"][0]["rewards"] = [{"function": f"{folder / 'own_reward.py'}:some"}]
    found["stages"][0]["objective"]["anchor"] = {"weight": 0.5, "span": request.param}
    found["discriminator"] = {"fit_after": "start", "prompts": 20, "steps": 5, "rollouts_per_prompt": 2}
    recipe = parse_recipe(found)
    train(recipe, folder / "run")
    return recipe, folder / "run"


def test_scores_are_those_of_the_run(run: tuple[Recipe, Path], tmp_path: Path, capsys) -> None:
    recipe, directory = run
    parallel = groups.start()
    try:
        opened = open_run(recipe, directory, parallel)
        examples = tokenized(opened.task.examples("test"), opened.tokenizer, 96, "test")[:3]
        chosen = [examples[i] for i in range(3)]
        anchor = recipe.stages[0].objective.anchor
        scores = open_scorer(opened, anchor).score(chosen, [example.experts[1] for example in chosen])
        wanted = [scores.within(i, scores.calibrated(float("inf"))).tolist() for i in range(3)]
    finally:
        groups.stop()
    lines = [
        {
            "prompt": list(e.example.messages),
            "response": e.example.experts[1],
            "expert": list(e.example.experts),
        }
        for e in chosen
    ]
    data = write_rows(tmp_path / "data.jsonl", lines)
    capsys.readouterr()
    assert (
        main(["discriminator", "score", "--discriminator", str(directory / "discriminator"), "--data", str(data)]) == 0
    )
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [[sentence["score"] for sentence in row["sentences"]] for row in printed]
    for values, expected, kept in zip(found, wanted, scores.kept, strict=True):
        assert kept.any()
        assert kept.all() == (anchor.span == "all")
        for value, known, judged in zip(values, expected, kept.tolist(), strict=True):
            assert value == (pytest.approx(known, abs=1e-3) if judged else None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": [{"role": "user"}], "response": "r", "expert": "e"}, ":1.prompt[0].content: expected a text"),
        ({"prompt": [], "response": "r", "expert": "e"}, ":1.prompt: expected at least one message, got none"),
        (
            {"prompt": [{"role": "tool", "content": "x"}], "response": "r", "expert": "e"},
            ":1.prompt: expected messages for the chat template, got no tools here",
        ),
        ({"prompt": "p" * 300, "response": "r", "expert": "e"}, ":1: expected at most 96 tokens, the trunk's context"),
        ("", ": expected at least one row, got none"),
    ],
)
def test_bad_rows_are_named(run: tuple[Recipe, Path], tmp_path: Path, capsys, line, message: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", [line])
    words = ["discriminator", "score", "--discriminator", str(run[1] / "discriminator"), "--data", str(data)]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert f"{data}{message}" in printed
    assert "Traceback" not in printed
