"""Bundled molecules of QM9 with their properties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ethanol_data import split_frames
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from e2former_pyg.transforms import RadiusGraph

RAW = Path(__file__).parent / "data" / "qm9" / "qm9_molecules.npz"
NUM_TRAIN = 1200
"""Training molecules; the others are for testing."""
SETTINGS: dict[str, Any] = {"batch_size": 16, "optimizer": "muon"}
"""Training settings of all models of properties."""


def load_molecules(
    target: str, cutoff: float = 5.0, seed: int = 0
) -> tuple[list[Data], list[Data]]:
    """Training molecules and the others, with their edges and one of their properties as ``y``.

    Args:
        target: ``"mu"`` (Debye), ``"homo"``, ``"lumo"`` or ``"gap"`` (eV).
        cutoff: The cutoff of the edges in Å.
        seed: Of the draw of the training molecules.
    """
    transform = RadiusGraph(cutoff)
    with np.load(RAW) as raw:
        cuts = raw["ptr"][1:-1]
        columns = (np.split(raw["z"], cuts), np.split(raw["pos"], cuts), raw[target])
    molecules = [
        transform(Data(z=torch.from_numpy(z).long(), pos=torch.from_numpy(pos), y=float(y)))
        for z, pos, y in zip(*columns, strict=True)
    ]
    return split_frames(molecules, NUM_TRAIN, "random", seed)


def targets(molecules: list[Data]) -> Tensor:
    """The property of each molecule."""
    return torch.tensor([data.y for data in molecules])


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, molecules: list[Data], loss: Callable[[Tensor, Data], Tensor]
) -> float:
    """The loss of all molecules in one batch."""
    data = Batch.from_data_list(molecules)
    return float(loss(model(data), data))
