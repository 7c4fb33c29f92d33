"""CUDA C++ operations (csrc/*.cu): compiled by nvcc alone, loaded by ctypes.

`python -m aapa.kernels.native.cuda` compiles them for compute capability 8.0, 9.0 and 10.0 beside the package;
`--output` says where else. None of it has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from aapa.kernels.sentence_types import SentenceTable

PACKAGE = Path(__file__).resolve().parents[2]
LIBRARY = PACKAGE / "kernels" / "_cuda.so"
CAPABILITIES = (80, 90, 100)


def nvcc_command(output: Path, nvcc: str = "nvcc") -> list[str]:
    """The compiler's command line: machine code for each capability, and PTX of the newest for later ones."""
    targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in CAPABILITIES]
    targets.append(f"-gencode=arch=compute_{CAPABILITIES[-1]},code=compute_{CAPABILITIES[-1]}")
    sources = [str(path) for path in sorted((PACKAGE / "csrc").glob("*.cu"))]
    return [nvcc, "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", *targets, "-o", str(output), *sources]


def compile_library(output: Path = LIBRARY) -> Path:
    """Compile csrc/*.cu into a shared library.

    Raises:
        RuntimeError: there is no nvcc, or it fails; the message has its output.
    """
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc: expected on the PATH, or named by the environment variable NVCC; found neither")
    done = subprocess.run(nvcc_command(output, nvcc), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stdout}{done.stderr}")
    return output


def missing() -> str | None:
    """Why the CUDA operations cannot run; None where they can."""
    if not LIBRARY.is_file():
        return "the CUDA operations are not compiled; `python -m aapa.kernels.native.cuda` does it where nvcc is"
    return None


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(LIBRARY))
    pointer, wide = ctypes.c_void_p, ctypes.c_int64
    problem = (pointer, ctypes.c_int, pointer, wide, pointer, wide, pointer, pointer, pointer, wide, wide)
    loaded.aapa_segment_sentences_count.argtypes = (*problem, pointer, pointer)
    loaded.aapa_segment_sentences_write.argtypes = (*problem, pointer, pointer, pointer)
    return loaded


def segment_sentences(token_T: Tensor, cu_seqlens: Tensor, table: SentenceTable) -> Tensor:
    """As `aapa.kernels.segment_sentences`, for tokens on a GPU; waits once, for the number of sentences."""
    device = token_T.device
    token_T = token_T.contiguous() if token_T.dtype in (torch.int32, torch.int64) else token_T.long()
    offsets = cu_seqlens.to(device, torch.int32).contiguous()
    classes = table.class_V.to(device, torch.int32).contiguous()
    next_CQ, cut_CQ, mark_CQ = (
        value.to(device, torch.uint8).contiguous() for value in (table.next_CQ, table.cut_CQ, table.mark_CQ)
    )
    sequences = len(offsets) - 1
    problem = [token_T.data_ptr(), int(token_T.dtype == torch.int64), offsets.data_ptr(), sequences]
    problem += [classes.data_ptr(), len(classes), next_CQ.data_ptr(), cut_CQ.data_ptr(), mark_CQ.data_ptr()]
    problem += [*next_CQ.shape]
    counts = torch.empty(sequences, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        _check(library().aapa_segment_sentences_count(*problem, counts.data_ptr(), stream))
        if sequences and bool((counts < 0).any()):
            raise ValueError("token_T, table: expected ids, classes and states inside of the table, got one outside")
        behind = counts.cumsum(0)
        total = int(behind[-1]) if sequences else 0
        found = torch.empty(total + 1, dtype=torch.int32, device=device)
        found[-1] = len(token_T)
        first = behind - counts
        _check(library().aapa_segment_sentences_write(*problem, first.data_ptr(), found.data_ptr(), stream))
    return found


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"segment_sentences: CUDA error {code}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the CUDA operations with nvcc.")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    print(compile_library(parser.parse_args(arguments).output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
