"""Makes Triton's interpreter compute what a GPU would, or refuse.

The stock interpreter keeps bfloat16 as its bits in uint16, and adds, compares and multiplies those integers; it
truncates where a GPU rounds; and it runs tf32 products in full float32. Here casts round to nearest even, products read
bfloat16 and tf32 operands as they are, and arithmetic on bfloat16 raises: our kernels load, convert to float32, and use
bfloat16 in `tl.dot` only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as stock

Builder, Handle = stock.InterpreterBuilder, stock.TensorHandle
TF32_DROPPED_BITS = 13


class Bfloat16Arithmetic(Exception):
    """A kernel computes in bfloat16 outside of `tl.dot`."""


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    """bfloat16 bits of float32 values, to nearest even unless `toward_zero`."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = bits if toward_zero else bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return np.where(np.isnan(values), np.uint16(0x7FC0), (upper >> 16).astype(np.uint16))


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values with the 10 bits of mantissa that a tf32 product reads."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (TF32_DROPPED_BITS - 1)) - 1) + ((bits >> TF32_DROPPED_BITS) & 1)
    kept = (bits + half) & np.uint32(0xFFFFFFFF << TF32_DROPPED_BITS & 0xFFFFFFFF)
    return np.where(np.isfinite(values), kept.view(np.float32), values)


def is_bfloat16(handle: Any) -> bool:
    return not isinstance(handle.dtype, tl.pointer_type) and handle.dtype.scalar == tl.bfloat16


def cast(original: Any, builder: Any, source: Any, target: Any, toward_zero: bool = False) -> Any:
    """Casts to and from bfloat16; others go to `original`."""
    if is_bfloat16(source) == (target.scalar == tl.bfloat16):
        return original(builder, source, target)
    if is_bfloat16(source):
        return Handle(widened(source.data).astype(stock._get_np_dtype(target)), target.scalar)
    return Handle(rounded(source.data.astype(np.float32), toward_zero), tl.bfloat16)


def refuse_bfloat16(name: str, *handles: Any) -> None:
    if any(is_bfloat16(handle) for handle in handles):
        raise Bfloat16Arithmetic(f"{name}: expected float32 operands, got bfloat16; convert after the load")


def install() -> None:
    """Patches the interpreter of this process, once."""
    if getattr(Builder, "corrected", False):
        return
    Builder.corrected = True
    stock_cast, stock_fp_to_fp = Builder.cast_impl, Builder.create_fp_to_fp
    stock_binary, stock_unary, stock_fma = Builder.binary_op, Builder.unary_op, Builder.create_fma
    stock_dot, stock_reduce, stock_scan = Builder.create_dot, stock.ReduceOps.apply_impl, stock.ScanOps.apply_impl

    def fp_to_fp(self: Any, source: Any, target: Any, mode: Any) -> Any:
        if is_bfloat16(source) == (target.scalar == tl.bfloat16):
            return stock_fp_to_fp(self, source, target, mode)
        return cast(stock_cast, self, source, target, mode == stock._ir.ROUNDING_MODE.RTZ)

    def binary(self: Any, left: Any, right: Any, op: Any) -> Any:
        refuse_bfloat16(op.__name__, left, right)
        result = stock_binary(self, left, right, op)
        if result.data.dtype == np.bool_:
            # The stock interpreter gives a comparison the type of what was compared, and a mask made of it is refused.
            result.dtype = tl.int1
        return result

    def unary(self: Any, argument: Any, op: Any) -> Any:
        refuse_bfloat16(op.__name__, argument)
        return stock_unary(self, argument, op)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        refuse_bfloat16("fma", x, y, z)
        return stock_fma(self, x, y, z)

    def dot(self: Any, left: Any, right: Any, total: Any, precision: Any, imprecise: Any) -> Any:
        if is_bfloat16(left):
            left, right = (Handle(widened(x.data), tl.float32) for x in (left, right))
        elif left.data.dtype == np.float32 and precision == stock._ir.INPUT_PRECISION.TF32:
            left, right = (Handle(to_tf32(x.data), tl.float32) for x in (left, right))
        return stock_dot(self, left, right, total, precision, imprecise)

    def reduce(self: Any, inputs: Any) -> Any:
        refuse_bfloat16("reduce", *(x.handle for x in inputs))
        return stock_reduce(self, inputs)

    def scan(self: Any, inputs: Any) -> Any:
        refuse_bfloat16("scan", *(x.handle for x in inputs))
        return stock_scan(self, inputs)

    Builder.cast_impl = lambda self, source, target: cast(stock_cast, self, source, target)
    Builder.create_fp_to_fp, Builder.binary_op, Builder.unary_op, Builder.create_fma = fp_to_fp, binary, unary, fma
    Builder.create_dot, stock.ReduceOps.apply_impl, stock.ScanOps.apply_impl = dot, reduce, scan
    _patch_the_language_once()
    _index_from_one_element()


def _index_from_one_element() -> None:
    """Triton 3.6 with numpy >= 2.4: int() of an array of one element raises, and `range(tensor)` with it."""
    patch = stock._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    stock._patch_lang_tensor = patched


def _patch_the_language_once() -> None:
    """The stock interpreter patches Triton's language at every call of a device function, which takes most of its time;
    here `tl.core`, which the library's functions use, is patched at a launch, as `tl` is for the kernel."""
    call = stock.GridExecutor.__call__

    def launched(self: Any, *args: Any, **named: Any) -> None:
        scope = stock._patch_lang(tl.standard.zeros.fn)
        try:
            call(self, *args, **named)
        finally:
            scope.restore()

    stock.GridExecutor.__call__ = launched
    stock.InterpretedFunction.__call__ = lambda self, *args, **named: self.rewrite()(*args, **named)
