"""Objectives: frozen dataclasses whose fields are their hyperparameters.

Importing them loads no torch, so that recipes are validated without it. Users add their own by a dotted path
`package.module:Class` of a subclass of `Objective`.
"""

from __future__ import annotations

from typing import Any

from aapa.objectives.base import Objective
from aapa.objectives.chord import CHORD, PRESETS
from aapa.objectives.grpo import GRPO
from aapa.objectives.sft import SFT

OBJECTIVES: dict[str, Any] = {"sft": SFT, "grpo": GRPO, "chord": CHORD}

__all__ = ["CHORD", "GRPO", "OBJECTIVES", "PRESETS", "SFT", "Objective"]
