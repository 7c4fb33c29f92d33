"""The recipes for rows of one's own: valid for models of their true shape, and sized as their comments and docs say."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from aapa.engine import cli
from aapa.engine.policy.names import expected_shapes
from aapa.engine.recipe import RecipeError, load_recipe, shipped_recipes
from aapa.engine.recipe.load import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
# hidden, feed-forward, layers, query heads, tied: from the published config.json of each.
SHAPES = {
    "0.6B": (1024, 3072, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "14B": (5120, 17408, 40, 40, False),
    "32B": (5120, 25600, 64, 64, False),
}
NAMES = [f"qwen3-{size.lower()}-{kind}" for size in SHAPES for kind in ("a-grpo", "a-chord")]
# What of a card an estimate may fill.
USABLE = 0.8


def config(size: str) -> dict:
    hidden, feed_forward, layers, heads, tied = SHAPES[size]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def size_of(name: str) -> str:
    return name.split("-")[1].upper()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What a user gives on the command line; the model is its configuration alone."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "expert": "b"}\n')
    return ["--data.files", str(tmp_path / "rows.jsonl"), "--model.source", str(tmp_path)]


def test_all_of_them_are_there() -> None:
    assert [name for name in shipped_recipes() if name.startswith("qwen3")] == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_valid_for_a_model_of_its_size(name: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(size_of(name))))
    recipe = load_recipe(name, words)
    assert recipe.stages[0].objective.anchor is None
    assert recipe.stages[1].objective.anchor.active
    layout = recipe.parallel
    replica = layout.tensor * layout.pipeline
    with pytest.raises(RecipeError, match="expected a divisor of num_attention_heads"):
        load_recipe(name, [*words, "--parallel.tensor", "3"])
    for stage in recipe.stages:
        assert stage.prompts_per_step % (2 * stage.objective.updates_per_rollout) == 0, "two replicas can share it"
    gpus, each = gpus_named(name)
    assert gpus % replica == 0
    assert load_recipe(name, words[:2]).model.source == f"Qwen/Qwen3-{size_of(name)}"
    assert recipe.model.dtype == "bfloat16"
    if replica == 1:
        copy = parameters(size_of(name)) * 2 / 1e9
        assert copy < recipe.rollout.memory_limit_gb < copy + 6, "the engine takes the copy, and little more"
    assert fullest(name, words, tmp_path) < USABLE * each


def gpus_named(name: str) -> tuple[int, int]:
    """Number and size of the GPUs in the recipe's comment."""
    found = re.search(r"on (\d+) GPUs? of (\d+) GB\. Never run at this size", (SHIPPED / f"{name}.toml").read_text())
    assert found
    return int(found[1]), int(found[2])


def parameters(size: str) -> int:
    """Of the shapes that a checkpoint of this configuration must have."""
    from transformers import Qwen3Config

    total = 0
    for shape in expected_shapes(Qwen3Config(**config(size))).values():
        count = 1
        for length in shape:
            count *= length
        total += count
    return total


def fullest(name: str, words: list[str], model: Path) -> float:
    """GB on the fullest GPU of those named in the recipe, as `aapa plan` says."""
    (model / "config.json").write_text(json.dumps(config(size_of(name))))
    gpus, each = gpus_named(name)
    assert each == 80
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["plan", name, "--gpu", "h100", "--gpus", str(gpus), "--as-given", "--json", *words[2:]]) == 0
    (layout,) = json.loads(printed.getvalue())["layouts"]
    return layout["peak_bytes"] / 1e9


def test_the_table_in_the_docs(words: list[str], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for size in SHAPES:
        pair = [name for name in NAMES if size_of(name) == size]
        recipes = [load_recipe(name, ["--data.files", "rows.jsonl"]) for name in pair]
        (layout,) = {recipe.parallel for recipe in recipes}
        ((gpus, each),) = {gpus_named(name) for name in pair}
        (most,) = {round(fullest(name, words, tmp_path), 1) for name in pair}
        row = (
            f"| `{pair[0]}`, `{pair[1]}` | Qwen3-{size} | {gpus} of {each} GB "
            f"| {layout.tensor} | {layout.micro_batch_tokens} | {most:.1f} |"
        )
        assert row in text


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_forgotten_are_asked_for(name: str) -> None:
    with pytest.raises(RecipeError, match=r"data.files: expected the rows .* got none; give --data.files rows.jsonl$"):
        load_recipe(name)
