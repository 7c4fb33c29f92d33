"""`aapa train --check` with a model of the hub: configuration and tokenizer are fetched, weights are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from own_rows import rows, table, write_rows

from aapa.engine.recipe.toml_text import toml_text

ROOT = Path(__file__).resolve().parents[2]


def check(folder: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The real program, with a cache of its own: the hub's client reads its address when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "aapa.engine", "train", str(folder / "r.toml"), "--check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT, check=False)


def test_weights_are_not_fetched(good_model: Path, tmp_path: Path) -> None:
    from hub_server import Hub

    recipe = table(Path("someone/some-model"), str(write_rows(tmp_path / "rows.jsonl", rows(60))))
    recipe["data"]["held_out"] = 0.2
    (tmp_path / "r.toml").write_text(toml_text(recipe))
    with Hub("someone/some-model", good_model) as hub:
        done = check(tmp_path, hub.address)
        fetched = set(hub.fetched())
        refused = check(tmp_path, hub.address, "--parallel.tensor", "3")
        missing = check(tmp_path, hub.address, "--model.source", "someone/other-model")
    assert done.returncode == 0, done.stderr
    assert "model someone/some-model: configuration and tokenizer looked at; a run fetches the weights" in done.stdout
    assert "data: 60 rows, 0 set aside" in done.stdout
    assert {"config.json", "tokenizer.json"} <= fetched
    assert "model.safetensors" not in fetched
    heads = json.loads((good_model / "config.json").read_text())["num_attention_heads"]
    assert refused.returncode == 2
    assert f"parallel.tensor: expected a divisor of num_attention_heads, {heads}, got 3" in refused.stderr
    assert missing.returncode == 2
    assert "model.source: expected a directory or a model of the hub, got 'someone/other-model'" in missing.stderr
    assert "Traceback" not in refused.stderr + missing.stderr
