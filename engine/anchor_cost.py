"""What the anchor costs, in seconds of the steps of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AnchorCost:
    """Sums of the phases' seconds since this process began the stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("step", "scoring", "reference"), 0.0)

    def add(self, figures: Mapping[str, Any]) -> None:
        """The figures of one step."""
        for phase in self.seconds:
            self.seconds[phase] += figures.get(f"time/{phase}", 0.0)

    def text(self, shared: bool) -> str:
        """One line for the user; `shared`: the scoring forward gives the KL reference's log-probs, too."""
        whole, scoring = self.seconds["step"], self.seconds["scoring"]
        share = f"scoring took {scoring:.1f} s of {whole:.1f} s, {scoring / whole:.1%} of the steps"
        if shared:
            return f"{share}, with the KL reference's log-probs from the same forward pass"
        if self.seconds["reference"]:
            return f"{share}; the KL reference another {self.seconds['reference'] / whole:.1%}"
        return share
