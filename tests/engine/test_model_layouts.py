"""Models in and out at TP = 2 and PP = 2, in real processes over gloo: the same bytes, log-probs and gradients."""

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


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_models_go_in_and_out_unchanged(tensor, pipeline, sources, launch, tmp_path):
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
        figures = load_file(tmp_path / f"{source.name}.figures")
        compare_log_probs(figures.pop("logprob"), source)
        compare_gradients(figures, source)


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


def compare_gradients(figures: dict[str, torch.Tensor], source: Path) -> None:
    """Against autograd through transformers in float64, which rounds rotary angles to float32."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    rows = models.sequences()
    tokens = sum(len(row.response) for row in rows)
    (sum(-models.response_log_probs(model, row).sum() for row in rows) / tokens).backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert float(figures.pop("norm")) == pytest.approx(float(norm), rel=1e-5), source.name
    want = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert figures.keys() == want.keys()
    for name, grad in figures.items():
        torch.testing.assert_close(grad, want[name], rtol=1e-5, atol=2e-6, msg=f"{source.name} {name}")
