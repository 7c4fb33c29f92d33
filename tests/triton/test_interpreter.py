"""Casts and products of the interpreter against torch's, and the refusal of arithmetic in bfloat16."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def cast(x, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane).to(out.dtype.element_ty))


@triton.jit
def product(left, right, out, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    lane = tl.arange(0, SIZE)
    place = lane[:, None] * SIZE + lane[None, :]
    found = tl.dot(tl.load(left + place), tl.load(right + place), input_precision=PRECISION)
    tl.store(out + place, found)


@triton.jit
def added(x, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane) + tl.load(x + lane))


@triton.jit
def reduced(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, BLOCK)), 0).to(tl.float32))


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    1 + 2**-8,
    1 + 3 * 2**-8,
    1 + 2**-9,
    -3.14159,
    1e-40,
    3.4e38,
    float("inf"),
    float("nan"),
    1e-3,
]


def test_casts_to_bfloat16_round_to_nearest_even() -> None:
    x = torch.cat([torch.tensor(SPECIAL), torch.randn(1012)])
    out = torch.empty(1024, dtype=torch.bfloat16)
    cast[(1,)](x, out, BLOCK=1024)
    assert torch.equal(out.nan_to_num(7.0), x.bfloat16().nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_casts_from_bfloat16_are_exact(dtype) -> None:
    x = torch.randn(1024).bfloat16()
    out = torch.empty(1024, dtype=dtype)
    cast[(1,)](x, out, BLOCK=1024)
    assert torch.equal(out, x.to(dtype))


def test_products_of_bfloat16_are_of_its_values() -> None:
    left, right = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty(16, 16)
    product[(1,)](left, right, out, SIZE=16, PRECISION="ieee")
    torch.testing.assert_close(out, left.float() @ right.float())


def test_tf32_products_drop_thirteen_bits_and_ieee_ones_none() -> None:
    one, above = torch.eye(16), torch.full((16, 16), 1 + 2**-10 + 2**-12)
    for precision, value in (("tf32", 1 + 2**-10), ("ieee", 1 + 2**-10 + 2**-12)):
        out = torch.empty(16, 16)
        product[(1,)](one, above, out, SIZE=16, PRECISION=precision)
        assert torch.equal(out, torch.full((16, 16), value))


@pytest.mark.parametrize("kernel", [added, reduced])
def test_arithmetic_in_bfloat16_is_refused(kernel) -> None:
    with pytest.raises(Exception, match="Bfloat16Arithmetic"):
        kernel[(1,)](torch.ones(4, dtype=torch.bfloat16), torch.empty(4, dtype=torch.bfloat16), BLOCK=4)


@triton.jit
def masked_by_a_scalar(x, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    wanted = (lane < 3) & (tl.load(x) > 0)
    tl.store(out + lane, tl.load(x + lane, mask=wanted, other=-1.0))


def test_a_comparison_of_scalars_is_a_mask() -> None:
    x, out = torch.arange(1.0, 9.0), torch.empty(8)
    masked_by_a_scalar[(1,)](x, out, BLOCK=8)
    assert out.tolist() == [1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0, -1.0]
