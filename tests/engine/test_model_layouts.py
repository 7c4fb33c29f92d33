"""Models in and out at TP = 2 and PP = 2, in real processes over gloo: the same bytes and the same log-probs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import models

pytestmark = pytest.mark.multiprocess
VARIANTS = ("tied", "untied", "biases", "llama3", "yarn-attention")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for family in models.FAMILIES:
        for name in VARIANTS:
            dtype = torch.bfloat16 if name == "untied" else torch.float32
            models.save(folder / f"{family}-{name}", models.config(family, **models.VARIANTS[name]), dtype, "20KB")
    return folder


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_the_round_trip_is_bit_identical(tensor, pipeline, sources, launch, tmp_path):
    launch("model_layout_worker.py", tensor * pipeline, tensor, pipeline, sources, tmp_path)
    for source in sorted(sources.iterdir()):
        out = tmp_path / source.name
        got, want = models.tensors(out), models.tensors(source)
        assert got.keys() == want.keys()
        for name, tensor_ in want.items():
            assert got[name].dtype == tensor_.dtype and got[name].shape == tensor_.shape
            assert torch.equal(got[name].view(torch.uint8), tensor_.view(torch.uint8)), (source.name, name)
        for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
            assert (out / name).read_bytes() == (source / name).read_bytes()
        compare_log_probs(load_file(tmp_path / f"{source.name}.logprob")["logprob"], source)


def compare_log_probs(got: torch.Tensor, source: Path) -> None:
    """Targets of the packed batch are the next tokens; prompts' own are no one's business."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    start = 0
    for sequence in models.sequences():
        tokens = torch.cat([sequence.prompt, sequence.response])
        with torch.no_grad():
            table = model(tokens[None]).logits[0].log_softmax(-1)
        first, last = len(sequence.prompt) - 1, len(tokens) - 1
        want = table[first:last].gather(1, sequence.response[:, None])[:, 0]
        torch.testing.assert_close(got[start + first : start + last], want, rtol=1e-5, atol=1e-5, msg=source.name)
        start += len(tokens)
