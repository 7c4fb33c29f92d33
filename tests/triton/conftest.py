"""Where Triton kernels run: compiled on a GPU; without one in the interpreter, in a process of its own.

Triton chooses when `@triton.jit` runs, for the whole process, so without a GPU `test_processes.py` starts this folder's
other tests with TRITON_INTERPRET=1, and they are left out everywhere else. Compilation ahead of time needs no GPU, and
no interpreter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = {"test_processes.py", "test_ahead_of_time.py"}
collect_ignore_glob = []
if INTERPRETED:
    collect_ignore_glob += sorted(COMPILED)
elif torch.cuda.is_available():
    collect_ignore_glob += ["test_interpreter.py", "test_sanitizer.py"]
else:
    collect_ignore_glob += [f.name for f in Path(__file__).parent.glob("test_*.py") if f.name not in COMPILED]

if INTERPRETED:
    import interpreter
    import sanitizer

    interpreter.install()
    sanitizer.install()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
