"""A kind of one's own: a class with the protocol's members, frozen by one's own program and named in the recipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runs import rl_table

from aapa.discriminator import freeze, load
from aapa.discriminator.base import Origin
from aapa.discriminator.store import read_record
from aapa.engine.cli import main
from aapa.engine.metrics import read_metrics, read_samples
from aapa.engine.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("own_reward")

# The example of docs/discriminators.md.
MODULE = '''
from dataclasses import dataclass
from functools import cached_property

import torch
from aapa.discriminator import Origin
from aapa.discriminator.base import discriminator_hash


@dataclass(frozen=True)
class Distance:
    scale: float
    mean: float
    std: float
    origin: Origin
    granularity: str = "sentence"
    kind = "own_kind:Distance"

    @cached_property
    def hash(self):
        return discriminator_hash(self)

    def tensors(self):
        return {}

    def scalars(self):
        return {"scale": self.scale}

    @classmethod
    def restore(cls, tensors, scalars, mean, std, origin, granularity):
        return cls(scalars["scale"], mean, std, origin, granularity)

    def score(self, sentence_SD, cu_group, expert_ED, cu_expert):
        """Minus the distance to the nearest expert sentence of the group; 0 where there is none."""
        scores = sentence_SD.new_zeros(len(sentence_SD))
        for g in range(len(cu_group) - 1):
            own, others = slice(*cu_group[g : g + 2].tolist()), slice(*cu_expert[g : g + 2].tolist())
            if others.stop > others.start:
                scores[own] = -self.scale * torch.cdist(sentence_SD[own], expert_ED[others]).amin(1)
        return scores
'''


@pytest.fixture
def own(start, tmp_path, monkeypatch) -> Path:
    """Frozen on the trunk of the start's discriminator."""
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_kind", None)
    (tmp_path / "own_kind.py").write_text(MODULE)
    from own_kind import Distance

    record = read_record(start / "discriminator")
    trunk = (start / "discriminator" / record["trunk"]["directory"]).resolve()
    facts = record["trunk"] | {"directory": os.path.relpath(trunk, tmp_path / "own")}
    return freeze(Distance(0.1, -0.3, 0.2, Origin(**record["origin"])), tmp_path / "own", trunk=facts)


def recipe(start: Path, own: Path, folder: Path, **discriminator) -> Path:
    table = rl_table(start, 0.5, steps=2)
    table["discriminator"] = {"source": str(own), **discriminator}
    file = folder / "own.toml"
    file.write_text(parse_recipe(table).to_toml())
    return file


def test_a_kind_of_ones_own_anchors_a_run(start, own, tmp_path):
    file = recipe(start, own, tmp_path, kind="own_kind:Distance")
    assert main(["train", str(file), "--output", str(tmp_path / "run")]) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert all(row["loss/adv"] != 0 for row in rows)
    scores = {sentence.score for sample in read_samples(tmp_path / "run") for sentence in sample.sentences}
    assert len(scores) > 2


def test_a_record_imports_nothing_by_itself(start, own, tmp_path, capsys):
    assert main(["train", str(recipe(start, own, tmp_path)), "--output", str(tmp_path / "run")]) == 2
    assert "kind: expected one of sentence, cosine, polar, got 'own_kind:Distance'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="kind: expected one of"):
        load(own)


def test_a_class_that_restores_nothing_is_refused(start, own, tmp_path, capsys):
    file = recipe(start, own, tmp_path, kind="own_kind:dataclass")
    assert main(["train", str(file), "--output", str(tmp_path / "run")]) == 2
    assert "discriminator.kind: expected a class with `restore`, got 'own_kind:dataclass'" in capsys.readouterr().err
