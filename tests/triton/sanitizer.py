"""Checks every access of the kernels that run in Triton's interpreter, as a GPU's sanitizer would.

`with sanitize(order):` raises where an active lane leaves the tensor that its pointer came from (views of one storage
have different bounds), where two programs of a launch touch the same bytes and one of them writes (atomics among
themselves excepted), and where lanes of one program do so without `tl.debug_barrier()` between them. Programs run in
the order asked for: a kernel that leans on one gives another result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as stock

ORDERS = ("normal", "reversed", "shuffled")
READ, WRITE, ATOMIC = "read", "write", "atomic"
# Shape operations on pointers that must not lose where they came from.
KEEPS_ORIGIN = ("create_splat", "create_broadcast", "create_expand_dims", "create_reshape", "create_trans")


class OutOfBounds(Exception):
    """An active lane leaves the tensor that its pointer came from."""


class Race(Exception):
    """Two programs, or two lanes of one without a barrier, touch the same bytes and one writes."""


@dataclass(frozen=True)
class Access:
    """One load, store or atomic: its bytes, and the lane of each.

    Attributes:
        byte: [B] addresses, one entry a byte.
        lane: [B] the lane that touches it. Blocks of other shapes or element sizes are laid out over other threads, so
            their lanes are others, too; a scalar is loaded by every thread and stored by one.
    """

    kind: str
    program: int
    byte: np.ndarray
    lane: np.ndarray


@dataclass
class Launch:
    """What one launch has touched so far."""

    bounds: dict[int, int]
    order: str
    accesses: list[Access] = field(default_factory=list)
    since_barrier: list[Access] = field(default_factory=list)
    program: int = 0
    permutation: np.ndarray | None = None


_launch: Launch | None = None
_order: str | None = None


def end_address(tensor: torch.Tensor) -> int:
    """Address behind the last element."""
    if tensor.numel() == 0:
        return tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def bounds_of(arguments: list[Any]) -> dict[int, int]:
    """End address by start address of the tensors among the arguments; the larger of two that start together."""
    found: dict[int, int] = {}
    for tensor in arguments:
        if isinstance(tensor, torch.Tensor):
            found[tensor.data_ptr()] = max(end_address(tensor), found.get(tensor.data_ptr(), 0))
    return found


def origin_of(pointers: Any) -> int | None:
    """Start of the tensor that pointers were made from; a kernel's argument is a pointer to it."""
    return pointers.attr.get("origin", int(pointers.data.flat[0]) if pointers.data.size == 1 else None)


def record(kind: str, pointers: Any, mask: Any) -> None:
    """Checks one access against the bounds and the program's other lanes, and keeps it for the end of the launch."""
    launch = _launch
    if launch is None:
        return
    shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
    active = np.broadcast_to(mask.data, shape).ravel()
    address = np.broadcast_to(pointers.data, shape).ravel()[active].astype(np.int64)
    if not address.size:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    origin = origin_of(pointers)
    if origin is None or origin not in launch.bounds:
        raise OutOfBounds(f"{kind}: a pointer of unknown origin in program {launch.program}")
    outside = (address < origin) | (address + size > launch.bounds[origin])
    if outside.any():
        raise OutOfBounds(f"{kind}: {outside.sum()} of {address.size} active lanes in program {launch.program}")
    index = np.flatnonzero(active).astype(np.int64)
    # Equal only within equal layouts; lanes of a scalar equal no other access's.
    layout = len(launch.accesses) + 1 if index.size == active.size == 1 else hash((shape, size)) % 2**20
    byte = (address[:, None] + np.arange(size)).ravel()
    access = Access(kind, launch.program, byte, np.repeat((layout << 40) + index, size))
    check_program(access, launch.since_barrier)
    launch.accesses.append(access)
    launch.since_barrier.append(access)


def check_program(new: Access, earlier: list[Access]) -> None:
    """The new access against those of the same program since its last barrier."""
    for old in earlier:
        if (old.kind == READ and new.kind == READ) or (ATOMIC in (old.kind, new.kind) and old.kind == new.kind):
            continue
        if old.byte.max() < new.byte.min() or new.byte.max() < old.byte.min():
            continue
        order = np.argsort(old.byte, kind="stable")
        place = np.searchsorted(old.byte, new.byte, sorter=order).clip(max=old.byte.size - 1)
        met = old.byte[order][place] == new.byte
        if (met & (old.lane[order][place] != new.lane)).any():
            raise Race(f"{old.kind} then {new.kind} by other lanes of program {new.program} without a barrier")


def check_programs(accesses: list[Access]) -> None:
    """Conflicts between programs of a launch."""
    joined = {}
    for kind in (READ, WRITE, ATOMIC):
        chosen = [a for a in accesses if a.kind == kind]
        empty = np.empty(0, np.int64)
        joined[kind] = (
            np.concatenate([a.byte for a in chosen] or [empty]),
            np.concatenate([np.full(a.byte.size, a.program) for a in chosen] or [empty]),
        )
    for first, second in ((WRITE, WRITE), (WRITE, READ), (WRITE, ATOMIC), (ATOMIC, READ)):
        byte, program = joined[first]
        order = np.lexsort((program, byte))
        byte, program = byte[order], program[order]
        other_byte, other_program = joined[second]
        low, high = (np.searchsorted(byte, other_byte, side=side) for side in ("left", "right"))
        hit = high > low
        least, most, other = program[low[hit]], program[high[hit] - 1], other_program[hit]
        conflict = (least != other) | (most != other)
        if conflict.any():
            one = int(least[conflict][0]) if least[conflict][0] != other[conflict][0] else int(most[conflict][0])
            raise Race(f"{first} and {second} of the same bytes by programs {one} and {int(other[conflict][0])}")


def place_of(number: int, launch: Launch, total: int) -> int:
    """The program that runs as the `number`-th."""
    if launch.order == "reversed":
        return total - 1 - number
    if launch.order == "shuffled":
        if launch.permutation is None:
            launch.permutation = np.random.default_rng(total).permutation(total)
        return int(launch.permutation[number])
    return number


def install() -> None:
    """Patches the interpreter of this process, once; without `sanitize` it runs as before."""
    builder, executor = stock.InterpreterBuilder, stock.GridExecutor
    if getattr(builder, "sanitized", False):
        return
    builder.sanitized = True
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw
    set_grid_idx, addptr, barrier, call = (
        builder.set_grid_idx,
        builder.create_addptr,
        builder.create_barrier,
        executor.__call__,
    )

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        record(READ, pointers, mask)
        return load(self, pointers, mask, *rest, **named)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        record(WRITE, pointers, mask)
        return store(self, pointers, value, mask, *rest, **named)

    def checked_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        record(ATOMIC, pointers, mask)
        return rmw(self, op, pointers, value, mask, *rest)

    def grid_idx(self: Any, x: int, y: int, z: int) -> None:
        if _launch is not None:
            _, ny, nz = self.grid_dim
            number = place_of((x * ny + y) * nz + z, _launch, int(np.prod(self.grid_dim)))
            x, y, z = number // (ny * nz), number // nz % ny, number % nz
            _launch.program, _launch.since_barrier = number, []
        set_grid_idx(self, x, y, z)

    def moved(self: Any, pointer: Any, offset: Any) -> Any:
        result = addptr(self, pointer, offset)
        result.attr["origin"] = origin_of(pointer)
        return result

    def passed_barrier(self: Any) -> None:
        if _launch is not None:
            _launch.since_barrier = []
        barrier(self)

    builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw = (
        checked_load,
        checked_store,
        checked_rmw,
    )
    builder.set_grid_idx, builder.create_addptr, builder.create_barrier = grid_idx, moved, passed_barrier
    for name in KEEPS_ORIGIN:
        setattr(builder, name, keeping_origin(getattr(builder, name)))
    executor.__call__ = lambda self, *args, **named: launched(call, self, args, named)


def keeping_origin(shape_operation: Any) -> Any:
    def operation(self: Any, *arguments: Any, **named: Any) -> Any:
        result = shape_operation(self, *arguments, **named)
        for argument in arguments:
            if isinstance(argument, stock.TensorHandle) and isinstance(argument.dtype.scalar, tl.pointer_type):
                result.attr["origin"] = origin_of(argument)
        return result

    return operation


def launched(call: Any, executor: Any, arguments: Any, named: dict[str, Any]) -> None:
    """One launch under the checks."""
    global _launch
    if _order is None:
        return call(executor, *arguments, **named)
    _launch = Launch(bounds_of([*arguments, *named.values()]), _order)
    try:
        call(executor, *arguments, **named)
        check_programs(_launch.accesses)
    finally:
        _launch = None
    return None


@contextlib.contextmanager
def sanitize(order: str = "normal") -> Iterator[None]:
    """Checks the launches inside, whose programs run in this order."""
    global _order
    assert order in ORDERS, order
    before, _order = _order, order
    try:
        yield
    finally:
        _order = before
