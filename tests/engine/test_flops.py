"""The count of useful arithmetic against PyTorch's own counter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from aapa.engine.flops import forward_flops, peak_flops, update_flops


@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_count_is_that_of_the_operations(length):
    """PyTorch counts the whole square of attention, of which causal masking leaves half as useful."""
    model = tiny.hf_model(dtype=torch.float32)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, length, dtype=torch.long))
    hf = model.config
    square = 2 * hf.num_hidden_layers * hf.num_attention_heads * hf.head_dim * length**2
    assert counter.get_total_flops() == forward_flops(hf, [length]) + square


def test_sequences_add_up_and_an_update_is_three_passes():
    hf = tiny.config()
    assert forward_flops(hf, [3, 5]) == forward_flops(hf, [3]) + forward_flops(hf, [5])
    assert update_flops(hf, [3, 5]) == 3 * forward_flops(hf, [3, 5])
    assert peak_flops(torch.device("cpu")) is None
