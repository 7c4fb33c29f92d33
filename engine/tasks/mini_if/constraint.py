"""What every constraint of mini-IF has: a clause for the prompt, an exact checker and a gameable one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Constraint(ABC):
    """One requirement on a response; neither checker sees whether the response was finished."""

    kind: ClassVar[str]

    @abstractmethod
    def instruction(self) -> str:
        """Return the clause that states the constraint in a prompt."""

    @abstractmethod
    def check(self, text: str) -> bool:
        """Say whether `text` meets the constraint exactly."""

    @abstractmethod
    def proxy_check(self, text: str) -> bool:
        """Say whether `text` passes the gameable checker."""
