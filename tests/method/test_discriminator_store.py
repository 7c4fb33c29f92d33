"""Frozen discriminators on disk."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aapa.discriminator import (
    CosineDiscriminator,
    Origin,
    QualityCard,
    SentenceDiscriminator,
    freeze,
    load,
)
from aapa.discriminator.base import table_hash
from aapa.discriminator.store import load_card
from aapa.kernels import SentenceHead
from aapa.sentences import build_sentence_table

HIDDEN = 3
TABLE = build_sentence_table(
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({" aa": 0, " bb": 1, ".": 2, "<eos>": 3}, " aa")),
        eos_token="<eos>",
    )
)
ORIGIN = Origin("trunk-0", -1, table_hash(TABLE))
CARD = QualityCard(
    0.9, 0.8, math.nan, {"repetition": 0.7}, 0.9, 0.8, 0.7, {"repetition": math.nan}, 0.01, {"rollouts": 9}
)


def sentence_discriminator() -> SentenceDiscriminator:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, HIDDEN), (2,), (4, 8), (4,), (4,), ()]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    return SentenceDiscriminator(SentenceHead(*weights, tau=0.5), 0.25, 1.5, ORIGIN)


def cosine_discriminator() -> CosineDiscriminator:
    return CosineDiscriminator(0.3, 0.0, 0.2, ORIGIN, "response")


@pytest.mark.parametrize("make", [sentence_discriminator, cosine_discriminator])
def test_round_trip(make: object, tmp_path: Path) -> None:
    discriminator = make()  # type: ignore[operator]
    freeze(discriminator, tmp_path / "d", trunk={"source": "base"}, card=CARD)
    back = load(tmp_path / "d", expected_hash=discriminator.hash)
    assert type(back) is type(discriminator)
    assert (back.hash, back.mean, back.std, back.origin, back.granularity) == (
        discriminator.hash,
        discriminator.mean,
        discriminator.std,
        discriminator.origin,
        discriminator.granularity,
    )
    u, cu = torch.randn(4, HIDDEN), torch.tensor([0, 4])
    assert torch.equal(back.score(u, cu, u[:2], cu // 2), discriminator.score(u, cu, u[:2], cu // 2))
    card = load_card(tmp_path / "d")
    assert card is not None
    assert card.to_json() == CARD.to_json()
    assert math.isnan(card.other_prompts)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "discriminator.json",
        "discriminator.safetensors",
    ]


def test_flipped_bits_are_refused_by_name(tmp_path: Path) -> None:
    freeze(sentence_discriminator(), tmp_path, card=CARD)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 5):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=path.name):
                load(tmp_path)
        path.write_bytes(content)
    load(tmp_path)


def test_missing_truncated_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"discriminator\.json: expected a file of a frozen discriminator"):
        load(tmp_path)
    freeze(sentence_discriminator(), tmp_path)
    assert load_card(tmp_path) is None
    weights = tmp_path / "discriminator.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"discriminator\.safetensors"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"discriminator\.safetensors"):
        load(tmp_path)
    for other in ("[]", "{}", "null", "\ufeff"):
        (tmp_path / "discriminator.json").write_text(other)
        with pytest.raises(ValueError, match=r"discriminator\.json"):
            load(tmp_path)


def test_an_edited_record_is_refused_even_with_its_sums_made_anew(tmp_path: Path) -> None:
    """A calibration changed by hand, seal and all, is another discriminator than the run's."""
    discriminator = sentence_discriminator()
    freeze(discriminator, tmp_path)
    freeze(replace(discriminator, mean=0.26), tmp_path / "other")
    with pytest.raises(ValueError, match=f"expected discriminator {discriminator.hash}"):
        load(tmp_path / "other", expected_hash=discriminator.hash)


def test_the_hash_changes_with_everything_that_decides_a_score() -> None:
    base = sentence_discriminator()
    weights = base.head.tensors()
    variants = [
        base,
        replace(base, mean=0.26),
        replace(base, std=1.6),
        replace(base, granularity="response"),
        replace(base, head=replace(base.head, tau=0.6)),
        *(replace(base, origin=replace(ORIGIN, **change)) for change in ({"trunk": "x"}, {"layer": 0}, {"table": "y"})),  # type: ignore[arg-type]
    ]
    for name, value in weights.items():
        moved = value.clone()
        moved.view(-1)[-1] = moved.view(-1)[-1].nextafter(torch.tensor(9.0))
        variants.append(replace(base, head=replace(base.head, **{name: moved})))  # type: ignore[arg-type]
    cosine = cosine_discriminator()
    variants_cosine = [cosine, replace(cosine, constant=0.31)]
    hashes = [v.hash for v in variants] + [v.hash for v in variants_cosine]
    assert len(set(hashes)) == len(hashes)
    assert sentence_discriminator().hash == base.hash


def test_a_kind_of_another_package_is_refused_by_name(tmp_path: Path) -> None:
    class Other(CosineDiscriminator):
        kind = "other"  # type: ignore[assignment]

    freeze(Other(0.1, 0.0, 1.0, ORIGIN), tmp_path)
    with pytest.raises(ValueError, match="^kind: expected one of sentence, cosine, polar, got 'other'"):
        load(tmp_path)


def test_the_record_is_readable_json(tmp_path: Path) -> None:
    freeze(sentence_discriminator(), tmp_path, trunk={"source": "base"})
    record = json.loads((tmp_path / "discriminator.json").read_text())
    assert record["trunk"] == {"source": "base"}
    assert record["origin"] == {"trunk": "trunk-0", "layer": -1, "table": ORIGIN.table}
    assert record["hash"] == sentence_discriminator().hash
