"""What benchmarks take on the command line, refused there if it cannot be."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def a_count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


def a_device(text: str) -> torch.device:
    """Of the two kinds that are timed."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(f"expected a device that is here, got {text!r} with {count} GPUs")
    return device


def a_file(text: str) -> Path:
    """One that can be appended to: said before anything is measured."""
    path = Path(text)
    try:
        there = path.exists()
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"expected a file that can be written, got {text!r}: {error.strerror}"
        ) from error
    return path
