"""Operations in C++ (csrc/), where they were built. `missing` says why they were not found, if so."""

from __future__ import annotations

import importlib.machinery
from functools import cache
from pathlib import Path

import torch

OPERATIONS = ("segment_sentences", "head_statistics", "head_gradient_", "head_instruction_set", "sentence_means")


@cache
def missing() -> str | None:
    """Why the C++ operations cannot run; None where they can. Loads them at the first call."""
    folder = Path(__file__).resolve().parents[1]
    files = [folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    found = [file for file in files if file.is_file()]
    if not found:
        return "the C++ operations are not built; `pip install -v --no-build-isolation -e .` says why"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return f"{found[0].name} does not load, it was built for another torch: {error}"
    absent = [name for name in OPERATIONS if not hasattr(torch.ops.aapa, name)]
    if absent:
        return f"{found[0].name} is older than its sources: it has no {', '.join(absent)}"
    from aapa.kernels.native import fakes

    fakes.register()
    return None
