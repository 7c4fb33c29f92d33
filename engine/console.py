"""Short messages to the person at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console


def announce(message: str | Mapping[str, Any]) -> None:
    """Print a line; a summary row becomes its few figures that matter."""
    if not isinstance(message, str):
        row = message
        low, high = row["pass_rate_ci"]
        message = f"{row['name']} after {row['stage']}: pass rate {row['pass_rate']:.3f} [{low:.3f}, {high:.3f}]"
        if row.get("in_language") is not None:
            message += f", in language {row['in_language']:.3f}"
        if row.get("proxy_reward") is not None:
            message += f", proxy {row['proxy_reward']:.3f}"
    Console().print(message, highlight=False, markup=False, soft_wrap=True)
