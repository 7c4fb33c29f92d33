"""Histograms of discriminator scores as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aapa.discriminator.quality import BINS, HISTOGRAM_LIMIT

NAMES = {
    "positives": "second expert",
    "rollouts": "policy rollouts",
    "other_prompts": "experts of other prompts",
    "damaged": "damaged experts",
}


def plot_scores(histograms: Mapping[str, Sequence[int]], path: Path) -> Path:
    """Draw the densities of calibrated scores (METHOD 3.1, before clipping), one line a role.

    Args:
        histograms: role → counts as in `QualityCard.histograms`; roles without any are left out.
        path: of a PNG.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    edges = np.linspace(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT, BINS + 1)
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axis = figure.subplots()
    for role, counts in histograms.items():
        total = sum(counts)
        if total:
            density = np.asarray(counts) / (total * (edges[1] - edges[0]))
            axis.stairs(density, edges, linewidth=1.6, label=f"{NAMES.get(role, role)}, {total} sentences")
    axis.set_xlabel("calibrated score, in σ of held-out rollouts (the outermost bins hold what lies beyond)")
    axis.set_ylabel("density")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    return path
