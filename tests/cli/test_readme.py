"""The README's way from rows, a model and a reward of one's own to a trained policy, block by block as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from aapa.engine import cli

README = Path(__file__).resolve().parents[2] / "README.md"
# The recipe at the size of a test, on top of what the README says.
SMALL = """
--rollout.max_new_tokens 16 --discriminator.prompts 20 --discriminator.steps 5 --discriminator.rollouts_per_prompt 2
--stages.sft.steps 2 --stages.sft.prompts_per_step 8 --stages.rl.steps 2 --stages.rl.prompts_per_step 2
--evaluation.prompts 6 --evaluation.final_prompts 6
""".split()  # noqa: SIM905


def section() -> str:
    text = README.read_text(encoding="utf-8")
    return text[text.index("## Train\n") : text.index("## Embed\n")]


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section(), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def llama(directory: Path) -> None:
    """With a token that begins texts, and none for padding."""
    from own_rows import TEMPLATE, tokenizer

    words = tokenizer("{{ bos_token }}" + TEMPLATE, pad_token=None, bos_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False,
        eos_token_id=words.eos_token_id, pad_token_id=None, bos_token_id=words.bos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    words.save_pretrained(directory)


def qwen3(directory: Path) -> None:
    from own_rows import model_directory

    model_directory(directory, context=128)


def write_files(folder: Path, family: str) -> None:
    """What the README says is the user's; more rows of the kind that it shows."""
    (printed,) = blocks("json")
    rows = [json.loads(line) for line in printed.splitlines()]
    for number in range(60):
        right = number + 5
        experts = [f"{number} and 5 make {right}. Answer: {right}", f"5 + {number} = {right}. Answer: {right}"]
        rows.append({"prompt": f"What is {number} + 5?", "expert": experts, "answer": right})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(blocks("python")[0])
    (recipe,) = blocks("toml")
    (folder / "recipe.toml").write_text(recipe)
    {"qwen3": qwen3, "llama": llama}[family](folder / "models" / "Qwen3-0.6B")


@pytest.mark.parametrize("family", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_from_rows_to_a_policy_that_generates(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    write_files(tmp_path, family)
    check, train, evaluate, report = [line.split("#")[0].split() for line in blocks("")[0].splitlines()]
    assert [words[:2] for words in (check, train, evaluate, report)] == [
        ["aapa", name] for name in ("train", "train", "eval", "report")
    ]
    assert cli.main([*check[1:], *SMALL]) == 0
    assert not (tmp_path / "runs").exists()
    capsys.readouterr()
    program = shutil.which("aapa", path=os.path.dirname(sys.executable)) or "aapa"
    done = subprocess.run([program, *train[1:], *SMALL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text())
    assert [row["stage"] for row in summary] == ["start", "sft", "rl"]
    assert cli.main(evaluate[1:]) == 0
    assert "runs/mine/final" in capsys.readouterr().out
    assert cli.main(report[1:]) == 0
    assert (tmp_path / "runs/mine/report.html").is_file()
    capsys.readouterr()
    exec(compile(blocks("python")[1], "README", "exec"), {})
    said = capsys.readouterr().out
    assert "What is 2 + 2?" in said
    assert len(said) > len("What is 2 + 2?") + 10


def test_what_the_readme_names_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aapa.engine.recipe import load_recipe, parse_recipe

    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, "qwen3")
    config = tmp_path / "models" / "Qwen3-0.6B" / "config.json"  # of a model that two ranks can share
    config.write_text(config.read_text().replace('"num_key_value_heads": 1', '"num_key_value_heads": 2'))
    commands = [line.split("#")[0].split() for line in blocks("")[1].splitlines()]
    trained = [words[words.index("train") + 1 :] for words in commands if "train" in words]
    for recipe, *overrides in trained:
        if recipe != "--help":
            output = overrides.index("--output") if "--output" in overrides else None
            loaded = load_recipe(recipe, overrides if output is None else overrides[2:])
            assert parse_recipe(loaded.table()) == loaded
    for name in re.findall(r"\]\(([^)#:]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / name).exists(), name
