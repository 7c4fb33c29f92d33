"""Objectives: frozen dataclasses whose fields are their hyperparameters.

Importing them loads no torch, so that recipes are validated without it. Users add their own by a dotted path
`package.module:Class` that implements `aapa.objectives.base.Objective`.
"""

from __future__ import annotations

from aapa.objectives.grpo import GRPO
from aapa.objectives.sft import SFT

OBJECTIVES = {"sft": SFT, "grpo": GRPO}

__all__ = ["GRPO", "OBJECTIVES", "SFT"]
