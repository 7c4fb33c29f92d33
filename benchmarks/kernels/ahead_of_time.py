"""Compiles Triton kernels for GPUs that are not here, from the launches that an operation makes on the CPU.

`launches(run)` collects what `run` would have launched: kernel, argument types, alignments, launch parameters. `report`
compiles one for a target and reads registers, spilled bytes, shared memory and matrix instructions from the binary.
Triton must not be in interpreter mode.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton import compile as compile_kernel
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg", "num_ctas")
# Loads and stores of 16 bytes need addresses and sizes that 16 divides; a launch says so to the compiler.
ALIGNMENT = 16


@dataclass(frozen=True)
class Target:
    """A GPU, the shared memory that a block may have, and its matrix instructions as its assembler writes them."""

    name: str
    gpu: GPUTarget
    shared_limit: int
    matrix: tuple[str, ...]


TARGETS = {
    target.name: target
    for target in (
        Target("sm80", GPUTarget("cuda", 80, 32), 166_912, ("HMMA",)),
        Target("sm90", GPUTarget("cuda", 90, 32), 232_448, ("HGMMA",)),
        Target("sm100", GPUTarget("cuda", 100, 32), 232_448, ("UTCHMMA",)),
        Target("gfx942", GPUTarget("hip", "gfx942", 64), 65_536, ("v_mfma",)),
    )
}


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments it was launched with."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def has_product(self) -> bool:
        """Whether it multiplies half-precision matrices."""
        half = any(
            isinstance(a, torch.Tensor) and a.dtype in (torch.bfloat16, torch.float16) for a in self.arguments.values()
        )
        return half and "tl.dot" in inspect.getsource(self.kernel.fn)

    def key(self) -> tuple[Any, ...]:
        """What makes a compiled kernel of its own."""
        return (self.name, str(self._signature()), str(self._constants()), str(self._attributes()), str(self.options))

    def source(self) -> ASTSource:
        return ASTSource(self.kernel, self._signature(), self._constants(), self._attributes())

    def _constants(self) -> dict[str, Any]:
        declared = {p.name for p in self.kernel.params if p.is_constexpr}
        # As at a launch: an absent pointer and a size of 1 are constants.
        return {
            name: value
            for name, value in self.arguments.items()
            if name in declared or value is None or (type(value) is int and value == 1)
        }

    def _signature(self) -> dict[str, str]:
        constant = self._constants()
        return {name: "constexpr" if name in constant else mangle_type(value) for name, value in self.arguments.items()}

    def _attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        constant, found = self._constants(), {}
        for place, (name, value) in enumerate(self.arguments.items()):
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if name not in constant and isinstance(number, int) and number % ALIGNMENT == 0:
                found[(place,)] = [["tt.divisibility", ALIGNMENT]]
        return found


@dataclass(frozen=True)
class Report:
    """What the compiler made of a launch.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's registers that went to memory.
        shared: bytes of shared memory of a block.
        matrix: number of matrix instructions.
    """

    kernel: str
    target: str
    registers: int
    spilled: int
    shared: int
    matrix: int
    options: dict[str, Any]
    expects_matrix: bool

    def faults(self) -> list[str]:
        """What must not be: spills, too much shared memory, no matrix instruction where there is a product."""
        limit, where = TARGETS[self.target].shared_limit, f"{self.kernel} on {self.target}"
        found = []
        if self.spilled:
            found.append(f"{where}: {self.spilled} bytes spilled")
        if self.shared > limit:
            found.append(f"{where}: {self.shared} bytes of shared memory, more than {limit}")
        if self.expects_matrix and not self.matrix:
            found.append(f"{where}: no {TARGETS[self.target].matrix[0]}")
        return found


def launches(run: Callable[[], Any]) -> list[Launch]:
    """What `run` would launch, in order, without those alike; nothing is launched, so outputs are what they were."""
    found: dict[tuple[Any, ...], Launch] = {}

    def collect(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        bound = inspect.signature(self.fn).bind(*args, **named)
        bound.apply_defaults()
        launch = Launch(self, dict(bound.arguments), options)
        found.setdefault(launch.key(), launch)

    with mock.patch.object(JITFunction, "run", collect):
        run()
    return list(found.values())


def report(launch: Launch, target: Target) -> Report:
    """Compiles the launch's kernel for the target."""
    compiled = compile_kernel(launch.source(), target=target.gpu, options=dict(launch.options))
    if target.gpu.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, spilled = _amd_field(text, "vgpr_count"), 4 * _amd_field(text, "vgpr_spill_count")
    else:
        registers, spilled, text = _cuda_resources(
            compiled.asm["cubin"], compiled.asm["ptx"], launch.has_product, target
        )
    return Report(
        launch.name,
        target.name,
        registers,
        spilled,
        compiled.metadata.shared,
        sum(len(re.findall(rf"\b{name}", text)) for name in target.matrix),
        launch.options,
        launch.has_product,
    )


def _amd_field(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s*(\d+)", text)
    assert found is not None, name
    return int(found[1])


def _cuda_resources(cubin: bytes, ptx: str, disassemble: bool, target: Target) -> tuple[int, int, str]:
    """(registers, spilled bytes, disassembly or nothing)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found is not None, usage
        registers, stack = int(found[1]), int(found[2])
        # Spilled registers lie on the stack: without one there are none, and ptxas need not be asked.
        spilled = _spilled(Path(folder), ptx, target) if stack else 0
        return registers, spilled, _output(knobs.nvidia.nvdisasm.path, file) if disassemble else ""


def _spilled(folder: Path, ptx: str, target: Target) -> int:
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    name = re.search(r"\.target (sm_\w+)", ptx)
    assert name is not None
    log = subprocess.run(
        [get_ptxas(target.gpu.arch).path, "-v", f"--gpu-name={name[1]}", source, "-o", folder / "again.cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert found is not None, log
    return int(found[1]) + int(found[2])


def _output(*command: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
