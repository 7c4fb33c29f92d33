"""Short messages to the person at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console


def announce(message: str | Mapping[str, Any]) -> None:
    """Print a line; a summary row becomes its few figures that matter."""
    if not isinstance(message, str):
        row = message
        message = f"{row['name']} after {row['stage']}: "
        if row["pass_rate_ci"] is None:
            known = row["expert_logprob"] is not None
            message += f"log-prob of experts {row['expert_logprob']:.3f}" if known else "nothing to judge by"
        else:
            low, high = row["pass_rate_ci"]
            message += f"pass rate {row['pass_rate']:.3f} [{low:.3f}, {high:.3f}]"
        if row.get("reward") is not None:
            message += f", reward {row['reward']:.3f}"
        if row.get("in_language") is not None:
            message += f", in language {row['in_language']:.3f}"
        if row.get("proxy_reward") is not None:
            message += f", proxy {row['proxy_reward']:.3f}"
    Console().print(message, highlight=False, markup=False, emoji=False, soft_wrap=True)
