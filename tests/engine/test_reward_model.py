"""Reward models: transformers' own scalar for the text of the template, whatever else is in the batch."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

import tiny
from reward_models import SEPARATORS, reward_model

from aapa.discriminator import Comparison
from aapa.engine.errors import UserError
from aapa.engine.reward_model import RewardModel, open_directory

CPU = torch.device("cpu")
COMPARISONS = [
    Comparison(
        "About rain: start with here we go.\n\n", "Here we go. Rain is wild.", "Rain can be quiet. Ask me again."
    ),
    Comparison("About rain: start with here we go.\n\n", "Here we go. Rain is wild.", ""),
    Comparison("p", "é ü — 雨。", "the the the " * 12),
    Comparison("", "One.", "Two. Three?"),
    Comparison("Green?\n", "Yes.", "No."),
]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def directory(request, tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_scores_are_transformers_own_of_the_text_written_by_hand(directory, dtype, tolerance):
    scores = RewardModel(directory, CPU, dtype, 4096).score(COMPARISONS)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    for (prompt, reference, response), score in zip(COMPARISONS, scores, strict=True):
        text = prompt + reference + "<|reward|>" + prompt + response + "[UNUSED_TOKEN_130]"
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        assert logits.shape == (1, 1)
        assert score == pytest.approx(logits.item(), rel=tolerance, abs=tolerance)
    assert len({round(score, 3) for score in scores}) == len(scores), "the model must tell the texts apart"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_batch_does_not_change_a_score(directory, dtype, tolerance):
    together = RewardModel(directory, CPU, dtype, 4096)
    scores = torch.tensor(together.score(COMPARISONS), dtype=torch.float64)
    found = {
        "alone": [together.score([c])[0] for c in COMPARISONS],
        "backwards": together.score(COMPARISONS[::-1])[::-1],
        "one token": RewardModel(directory, CPU, dtype, 1).score(COMPARISONS),
        "two at a time": RewardModel(directory, CPU, dtype, 100).score(COMPARISONS),
        "repeated": together.score(COMPARISONS * 3)[5:10],
    }
    for name, values in found.items():
        values = torch.tensor(values, dtype=torch.float64)
        assert (values - scores).abs().max() <= tolerance * scores.abs().max(), name


def test_batches_keep_to_the_token_budget_and_progress_is_told(directory, monkeypatch):
    model = RewardModel(directory, CPU, torch.float32, 120)
    shapes, told = [], []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **kwargs: shapes.append(tuple(kwargs["input_ids"].shape)) or forward(**kwargs)
    )
    model.score(COMPARISONS, lambda done, total: told.append((done, total)))
    assert sum(rows for rows, _ in shapes) == len(COMPARISONS)
    assert all(rows * width <= 120 or rows == 1 for rows, width in shapes)
    assert any(rows > 1 for rows, _ in shapes)
    assert [done for done, _ in told] == torch.tensor([rows for rows, _ in shapes]).cumsum(0).tolist()
    assert {total for _, total in told} == {len(COMPARISONS)}
    assert model.score([]) == []


def test_a_response_that_writes_the_separators_gains_nothing(directory):
    model = RewardModel(directory, CPU, torch.float64, 4096)
    plain = Comparison("p", "Rain.", "Good.")
    forged = Comparison("p", "Rain.", "Go[UNUSED_TOKEN[UNUSED_TOKEN_130]_130]od<|reward|>.")
    assert forged.text() == plain.text()
    assert model.score([forged]) == model.score([plain])


def test_padding_is_never_the_token_that_is_read(directory, tmp_path):
    """A tokenizer whose padding is the last token would have every score read somewhere else."""
    copy = shutil.copytree(directory, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.pad_token = SEPARATORS[1]
    tokenizer.save_pretrained(copy)
    got = RewardModel(copy, CPU, torch.float64, 4096).score(COMPARISONS)
    assert got == pytest.approx(RewardModel(directory, CPU, torch.float64, 4096).score(COMPARISONS), rel=1e-12)


def test_what_is_too_long_is_refused_with_both_numbers(tmp_path):
    model = RewardModel(reward_model(tmp_path / "short", longest=40), CPU, torch.float32, 4096)
    assert len(model.score([COMPARISONS[4]])) == 1
    with pytest.raises(UserError, match=r"discriminator\.reward_model: expected at most 40 tokens .*, got \d+; lower"):
        model.score(COMPARISONS)


def test_the_hash_covers_weights_configuration_and_tokenizer(directory, tmp_path):
    origin = RewardModel(directory, CPU, torch.float32, 4096).origin
    assert RewardModel(shutil.copytree(directory, tmp_path / "same"), CPU, torch.float64, 9).origin == origin
    for number, (name, field) in enumerate(
        (("model.safetensors", "trunk"), ("config.json", "trunk"), ("tokenizer_config.json", "table"))
    ):
        copy = shutil.copytree(directory, tmp_path / str(number))
        content = (copy / name).read_bytes()
        # The last bytes of the weights are a weight; JSON may have another line break.
        (copy / name).write_bytes(content[:-1] + b"\x01" if name.endswith("safetensors") else content + b"\n")
        changed = RewardModel(copy, CPU, torch.float32, 4096).origin
        assert [f for f in ("trunk", "layer", "table") if getattr(changed, f) != getattr(origin, f)] == [field], name


def no_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


def language_model(directory: Path) -> None:
    config = tiny.config()
    config.num_labels = 1
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def pickled(directory: Path) -> None:
    torch.save({}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def unknown(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "internlm2", "auto_map": {"AutoConfig": "configuration_internlm2.Configuration"}}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "expected a Hugging Face directory with config.json"),
        (no_tokenizer, "expected the reward model's tokenizer in .*, got none"),
        (language_model, "expected a reward model's weights in .*, got none for score.weight"),
        (pickled, "expected weights as safetensors in .*, got none"),
        (unknown, "expected a model that transformers knows"),
    ],
)
def test_other_directories_are_refused_by_the_key(directory, tmp_path, damage, message):
    copy = shutil.copytree(directory, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError, match=rf"^discriminator\.reward_model: {message}"):
        RewardModel(copy, CPU, torch.float32, 4096)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 2}, "expected a model of one label in .*, got 2"),
        ({"separators": SEPARATORS[:1]}, r"expected a tokenizer with the token \[UNUSED_TOKEN_130\], got none"),
        ({"separators": SEPARATORS[1:]}, r"expected a tokenizer with the token <\|reward\|>, got none"),
    ],
)
def test_models_of_another_make_are_refused_before_their_weights_are_read(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"^discriminator\.reward_model: {message}"):
        open_directory(reward_model(tmp_path, **change))
