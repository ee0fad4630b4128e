"""The models of the ethanol examples and how they are trained."""

from __future__ import annotations

from typing import Any

NUM_TRAIN = 800
"""Training frames; the others are for testing."""

MODEL: dict[str, Any] = {
    "hidden_channels": 48,
    "num_layers": 2,
    "lmax": 2,
    "heads": 4,
    "cutoff": 5.0,
    "num_radial": 16,
    "avg_num_neighbors": 8.0,
    # They fix all shapes, so that a training step can be traced.
    "elements": [1, 6, 8],
}
"""Arguments of the ``E2FormerPotential``."""

SETTINGS: dict[str, dict[str, Any]] = {
    "e2former": {"optimizer": "muon", "lr": 5e-3, "energy_weight": 0.03},
    "schnet": {"optimizer": "muon", "lr": 3e-3},
}
"""Training settings of each model; Muon serves both better than AdamW."""
