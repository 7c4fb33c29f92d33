"""`aapa discriminator fit | refresh | score` as a user calls them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runs import rl_table, start_table

from aapa.engine.cli import main
from aapa.engine.recipe import parse_recipe
from aapa.engine.tasks import load_task

PNG = b"\x89PNG"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "start.toml"
    table = start_table()
    table["stages"][-1]["objective"] = {"kind": "sft"}
    table["stages"].append(
        {
            "name": "rl",
            "steps": 1,
            "prompts_per_step": 2,
            "learning_rate": 1e-4,
            "rewards": [{"function": "aapa.engine.tasks.mini_if.rewards:true_reward"}],
            "objective": {"kind": "grpo", "group_size": 2, "anchor": {"weight": 0.5}},
        }
    )
    file.write_text(parse_recipe(table).to_toml())
    return file


def test_a_fit_outside_of_the_run_gives_the_runs_own_discriminator(start, recipe, tmp_path, capsys):
    words = ["discriminator", "fit", str(recipe), "--run", str(start), "--output", str(tmp_path / "fitted")]
    assert main(words) == 0
    assert "held-out AUC" in capsys.readouterr().out
    made, own = (
        json.loads((d / "discriminator.json").read_text()) for d in (tmp_path / "fitted", start / "discriminator")
    )
    assert made["hash"] == own["hash"]
    assert made["card"] == own["card"]
    assert (tmp_path / "fitted" / "scores.png").read_bytes().startswith(PNG)
    assert {role: sum(counts) for role, counts in made["card"]["histograms"].items()} == {
        role: made["card"]["counts"][role] for role in ("positives", "rollouts", "other_prompts", "damaged")
    }
    # One that is there is replaced only where that is said.
    assert main(words) == 2
    assert "expected a directory without a discriminator" in capsys.readouterr().err
    words.append("--overwrite")
    # The recipe's own keys can be given, and decide.
    assert main([*words, "--discriminator.steps", "3"]) == 0
    assert json.loads((tmp_path / "fitted" / "discriminator.json").read_text())["hash"] != own["hash"]
    # It is fitted on what the anchor will speak of.
    assert main([*words, "--discriminator.steps", "3", "--stages.rl.objective.anchor.span", '["a", "e"]']) == 0
    counts = json.loads((tmp_path / "fitted" / "discriminator.json").read_text())["card"]["counts"]
    assert 0 < counts["held_out_prompts"] <= own["card"]["counts"]["held_out_prompts"]
    assert counts["rollouts"] != own["card"]["counts"]["rollouts"]


def test_a_fit_needs_the_stage_it_comes_after(recipe, tmp_path, capsys):
    assert main(["discriminator", "fit", str(recipe), "--run", str(tmp_path / "empty")]) == 2
    assert "discriminator.fit_after: expected 'sft' to have ended" in capsys.readouterr().err


def test_a_policy_that_was_given_can_be_fitted_on_at_the_start(start, tmp_path, capsys):
    from aapa.engine.trainer import train

    table = rl_table(start, 0.5, steps=1)
    table["stages"][0]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    table["discriminator"] = start_table()["discriminator"] | {"fit_after": "start"}
    train(parse_recipe(table), tmp_path / "run")
    assert (tmp_path / "run" / "discriminator" / "discriminator.json").is_file()
    assert "held-out AUC" in capsys.readouterr().out
    table["model"] = start_table()["model"]
    with pytest.raises(ValueError, match=r"discriminator\.fit_after: expected a stage before the first anchored one"):
        parse_recipe(table)


def test_refresh_embeds_only_what_changed_and_tells_the_drift(start, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(start, run)
    words = ["discriminator", "refresh", str(recipe), "--run", str(run)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "experts: 80 of 80 embedded" in out
    assert (
        "drift on 6 of 6 prompts: AUC +0.000, against genuine rollouts +0.000; mean score +0.00 σ, spread ×1.00" in out
    )
    assert main(words) == 0
    assert "experts: 0 of 80 embedded" in capsys.readouterr().out


def test_refresh_refuses_experts_that_the_discriminator_does_not_know(start, recipe, tmp_path, capsys, monkeypatch):
    from aapa.engine.tasks.mini_if.task import MiniIF

    run = tmp_path / "run"
    shutil.copytree(start, run)
    plain = MiniIF.examples

    def mangled(self, split):
        from dataclasses import replace

        return [replace(e, experts=(e.experts[0][::-1], e.experts[1])) for e in plain(self, split)]

    monkeypatch.setattr(MiniIF, "examples", mangled)
    assert main(["discriminator", "refresh", str(recipe), "--run", str(run), "--max-shift", "0.01"]) == 2
    assert "fit the discriminator anew" in capsys.readouterr().err


def test_rows_that_come_and_go_are_no_drift(start, recipe, tmp_path, capsys, monkeypatch):
    """What is compared are the prompts that the fit held out, with the same rollouts, whatever the others do."""
    from aapa.discriminator.store import read_record
    from aapa.engine.discriminator_material import prompt_key
    from aapa.engine.tasks.mini_if.task import MiniIF

    run = tmp_path / "run"
    shutil.copytree(start, run)
    held_out = {key for key, _ in read_record(run / "discriminator")["trunk"]["held_out"]}
    plain = MiniIF.examples

    def fewer(self, split, lost=0):
        """Without `lost` of the held-out prompts and ten others, and with other numbers."""
        from dataclasses import replace

        tokenizer, kept, gone = self.tokenizer(), [], {True: 0, False: 0}
        for e in plain(self, split):
            known = prompt_key(tokenizer.encode(e.prompt, add_special_tokens=False)) in held_out
            if split == "train" and gone[known] < (lost if known else 10):
                gone[known] += 1
            else:
                kept.append(e)
        return [replace(e, id=i) for i, e in enumerate(reversed(kept))]

    words = ["discriminator", "refresh", str(recipe), "--run", str(run)]
    monkeypatch.setattr(MiniIF, "examples", fewer)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "experts: 70 of 70 embedded" in out
    assert "drift on 6 of 6 prompts: AUC +0.000, against genuine rollouts +0.000; mean score +0.00 σ" in out
    monkeypatch.setattr(MiniIF, "examples", lambda self, split: fewer(self, split, lost=1))
    main([*words, "--max-shift", "9", "--max-auc-drop", "1"])
    assert "drift on 5 of 6 prompts" in capsys.readouterr().out
    monkeypatch.setattr(MiniIF, "examples", lambda self, split: fewer(self, split, lost=5))
    assert main(words) == 2
    assert "data: expected 2 or more of the 6 prompts that the fit held out, got 1" in capsys.readouterr().err


def test_a_policy_from_scratch_is_no_policy_of_a_discriminator_that_was_brought_along(start, recipe, tmp_path, capsys):
    words = ["discriminator", "refresh", str(recipe), "--run", str(tmp_path / "run")]
    text = recipe.read_text().replace('fit_after = "sft"', f'source = "{start / "discriminator"}"')
    recipe.write_text(text)
    assert main(words) == 2
    assert "model.source: expected the policy whose rollouts" in capsys.readouterr().err


@pytest.mark.parametrize(("stored", "now", "problem"), [
    ((0.9, 0.6), (0.88, 0.6), None),
    ((0.9, 0.6), (0.86, 0.6), "auc: expected a fall of at most 0.03, got 0.040"),
    ((0.9, 0.6), (float("nan"), 0.6), "auc: expected a fall"),
    ((float("nan"), float("nan")), (float("nan"), 0.7), None),
])  # fmt: skip
def test_a_figure_that_is_lost_has_fallen(stored, now, problem):
    from aapa.engine.discriminator_command import DriftLimits, _check_drift
    from aapa.engine.discriminator_stage import Drift, change
    from aapa.engine.errors import UserError

    drift = Drift(*(change(b, a) for a, b in zip(stored, now, strict=True)), shift=0.0, spread=1.0)
    if problem is None:
        _check_drift(drift, DriftLimits())
    else:
        with pytest.raises(UserError, match=problem):
            _check_drift(drift, DriftLimits())
    with pytest.raises(UserError, match="shift"):
        _check_drift(Drift(0.0, 0.0, shift=float("nan"), spread=1.0), DriftLimits())


def test_a_discriminator_of_another_span_is_refused(start, tmp_path, capsys):
    table = rl_table(start, 0.5, steps=1)
    table["stages"][0]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    table["stages"][0]["objective"]["anchor"]["span"] = ["a", "e"]
    file = tmp_path / "recipe.toml"
    file.write_text(parse_recipe(table).to_toml())
    assert main(["train", str(file), "--output", str(tmp_path / "run")]) == 2
    assert "anchor.span: expected 'all' as the discriminator was fitted, got ('a', 'e')" in capsys.readouterr().err


def test_scores_of_a_file(start, tmp_path, capsys):
    example = load_task("mini-if").examples("dev")[0]
    data = tmp_path / "data.jsonl"
    rows = [
        {"prompt": example.prompt, "response": example.experts[1], "expert": list(example.experts)},
        {"prompt": example.prompt, "response": "the the the. Xylophone!", "expert": example.experts[0]},
    ]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    words = ["discriminator", "score", "--discriminator", str(start / "discriminator"), "--data", str(data)]
    assert main(words) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(s["text"] for s in printed[0]["sentences"]).strip() == example.experts[1]
    for row in printed:
        values = [sentence["score"] for sentence in row["sentences"]]
        assert row["score"] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert main([*words, "--output", str(tmp_path / "out" / "scores.jsonl")]) == 0
    assert [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()] == printed
    assert (tmp_path / "out" / "scores.png").read_bytes().startswith(PNG)
    # Nothing that is there is written over, and what cannot be written is told first.
    content = data.read_bytes()
    for output in (data, tmp_path / "scores.png", tmp_path, data / "x.jsonl"):
        assert main([*words, "--output", str(output)]) == 2
        assert "--output: expected" in capsys.readouterr().err
    assert data.read_bytes() == content


def test_a_response_has_its_end_once(start, tmp_path, capsys):
    example = load_task("mini-if").examples("dev")[0]
    end = load_task("mini-if").tokenizer().eos_token
    text = example.experts[1]
    rows = [{"response": text}, {"response": text + end}, {"response": text, "truncated": True}]
    data = tmp_path / "data.jsonl"
    data.write_text(
        "\n".join(json.dumps({"prompt": example.prompt, "expert": example.experts[0]} | row) for row in rows)
    )
    assert main(["discriminator", "score", "--discriminator", str(start / "discriminator"), "--data", str(data)]) == 0
    whole, again, cut = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert whole == again
    assert whole["sentences"][:-1] == cut["sentences"][:-1]
    assert whole["sentences"][-1]["score"] != cut["sentences"][-1]["score"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: expected a JSON object"),
        ("[1]", ":1: expected a JSON object, got list"),
        ('{"prompt": "p", "response": "r"}', ":1.expert: expected a text, got None"),
        ('{"prompt": "", "response": "r", "expert": "e"}', ":1.prompt: expected a text, got ''"),
        ('{"prompt": "p", "response": 3, "expert": "e"}', ":1.response: expected a text, got 3"),
        ('{"prompt": "p", "response": "r", "expert": [2]}', ":1.expert: expected a text, got 2"),
        ('{"prompt": "p", "response": "\\ud83d", "expert": "e"}', ":1.response: expected Unicode text, got half a"),
        ('{"prompt": "p", "response": "r", "expert": "e", "truncated": 1}', ":1.truncated: expected true or false"),
    ],
)
def test_bad_rows_are_named(start, tmp_path, capsys, line, message):
    data = tmp_path / "data.jsonl"
    data.write_text(line + "\n")
    assert main(["discriminator", "score", "--discriminator", str(start / "discriminator"), "--data", str(data)]) == 2
    assert f"{data}{message}" in capsys.readouterr().err


def test_the_recipe_says_how_the_experts_states_are_kept(start, tmp_path):
    from safetensors.torch import load_file

    table = rl_table(start, 0.5, steps=1)
    table["stages"][0]["rewards"][0]["function"] = "aapa.engine.tasks.mini_if.rewards:true_reward"
    table["discriminator"]["cache_dtype"] = "bfloat16"
    file = tmp_path / "recipe.toml"
    file.write_text(parse_recipe(table).to_toml())
    words = ["train", str(file), "--output", str(tmp_path / "run")]
    assert main(words) == 0
    (shard, *_) = (tmp_path / "run" / "experts").glob("*.safetensors")
    assert "torch.bfloat16" in {str(t.dtype) for t in load_file(shard).values() if t.is_floating_point()}
    # A changed byte is found, unless the recipe says not to look.
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(words) == 2
    assert main([*words, "--discriminator.cache_verify", "false"]) == 0


def test_the_check_knows_layer_and_span_and_enough_prompts(recipe, tmp_path, capsys):
    words = ["train", str(recipe), "--output", str(tmp_path / "run"), "--check"]
    assert main(words) == 0
    for key, value, message in (
        ("discriminator.layer", "9", "discriminator.layer: expected -2 … -1 or 1 … 2, got 9"),
        ("discriminator.prompts", "3", "discriminator.prompts: expected 2 held out and 2 others at least"),
        (
            "stages.rl.objective.anchor.span",
            '["<think>", "</think>"]',
            "stages.2.objective.anchor.span: expected delimiters of one token each",
        ),
    ):
        assert main([*words, f"--{key}", value]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
