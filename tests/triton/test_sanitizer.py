"""The sanitizer finds planted faults, and nothing in kernels that are right."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from sanitizer import ORDERS, sanitize


@triton.jit
def doubled(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, 2 * tl.load(x + place, mask=place < length), mask=place < length)


@triton.jit
def unmasked_store(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place, mask=place < length))


@triton.jit
def unmasked_load(x, out, length, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place), mask=place < length)


@triton.jit
def overlapping(out, BLOCK: tl.constexpr):
    tl.store(out + tl.program_id(0) + tl.arange(0, BLOCK), tl.full((BLOCK,), 1.0, tl.float32))


@triton.jit
def reads_the_neighbour(out, length):
    program = tl.program_id(0)
    left = tl.load(out + program - 1, mask=program > 0, other=0.0)
    tl.store(out + program, left + 1.0, mask=program < length)


@triton.jit
def summed(x, out, ATOMIC: tl.constexpr):
    value = tl.load(x + tl.program_id(0))
    if ATOMIC:
        tl.atomic_add(out, value)
    else:
        tl.store(out, tl.load(out) + value)


@triton.jit
def halves_in_place(wide, narrow, length, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(wide + place, mask=place < length)
        if BARRIER:
            tl.debug_barrier()
        tl.store(narrow + place, value.to(tl.bfloat16), mask=place < length)


@triton.jit
def through_memory(x, out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + BLOCK + lane, tl.load(out + BLOCK - 1 - lane))


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes(order: str) -> None:
    x = torch.arange(10.0)
    out = torch.empty(10)
    with sanitize(order):
        doubled[(3,)](x, out, 10, BLOCK=4)
    assert torch.equal(out, 2 * x)


@pytest.mark.parametrize(("kernel", "kind"), [(unmasked_store, "write"), (unmasked_load, "read")])
def test_lanes_outside_of_their_tensor(kernel, kind: str) -> None:
    # Rows of one storage: what lies behind the first row is the second, and not out of the storage's bounds.
    storage = torch.zeros(4, 10)
    with pytest.raises(Exception, match=f"OutOfBounds.*{kind}: 2 of 4 active lanes in program 2"), sanitize():
        kernel[(3,)](storage[0], storage[2], 10, BLOCK=4)


def test_programs_that_write_the_same_bytes() -> None:
    with pytest.raises(Exception, match="write and write of the same bytes by programs"), sanitize():
        overlapping[(3,)](torch.zeros(10), BLOCK=2)
    with sanitize():
        overlapping[(3,)](torch.zeros(10), BLOCK=1)


def test_programs_that_write_what_others_read() -> None:
    with pytest.raises(Exception, match="write and read of the same bytes by programs"), sanitize():
        reads_the_neighbour[(3,)](torch.zeros(10), 3)


def test_atomics_may_meet_and_other_writes_may_not() -> None:
    x, out = torch.ones(3), torch.zeros(1)
    with sanitize():
        summed[(3,)](x, out, ATOMIC=True)
    assert out.item() == 3.0
    with pytest.raises(Exception, match="Race"), sanitize():
        summed[(3,)](x, out, ATOMIC=False)


def test_lanes_of_one_program_without_a_barrier() -> None:
    wide = torch.arange(8.0)
    with pytest.raises(Exception, match="read then write by other lanes of program 0"), sanitize():
        halves_in_place[(1,)](wide, wide.view(torch.bfloat16), 8, BLOCK=4, BARRIER=False)
    wide = torch.arange(8.0)
    with sanitize():
        halves_in_place[(1,)](wide, wide.view(torch.bfloat16), 8, BLOCK=4, BARRIER=True)
    assert wide.view(torch.bfloat16)[:8].tolist() == list(range(8))
    with pytest.raises(Exception, match="write then read by other lanes"), sanitize():
        through_memory[(1,)](torch.ones(4), torch.zeros(8), BLOCK=4, BARRIER=False)
    with sanitize():
        through_memory[(1,)](torch.ones(4), torch.zeros(8), BLOCK=4, BARRIER=True)


def test_a_result_that_depends_on_the_order_shows_in_another_order(monkeypatch) -> None:
    monkeypatch.setattr("sanitizer.check_programs", lambda accesses: None)
    results = []
    for order in ORDERS:
        out = torch.zeros(5)
        with sanitize(order):
            reads_the_neighbour[(5,)](out, 5)
        results.append(out.tolist())
    assert results[0] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert results[1] == [1.0] * 5
    assert results[2] not in results[:2]
