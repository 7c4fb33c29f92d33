"""The ways a run ends early, each with its own exit code of the command line."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right; the message reads `<field>: expected …, got …` (exit code 2)."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved a checkpoint to go on from (exit code 3)."""


class TrainingFault(Exception):
    """Training cannot go on: non-finite figures, or reward failures above the limit (exit code 4)."""
