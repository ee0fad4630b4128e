"""The bundled alloys, and how a potential is trained on their energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from training import Settings, fit_references, train

from e2former_pyg import E2FormerPotential, PotentialOutput
from e2former_pyg.data import NPZDataset
from e2former_pyg.transforms import RadiusGraph

RAW = Path(__file__).parent / "data" / "alloys" / "emt_alloys.npz"

MODEL: dict[str, Any] = {
    "hidden_channels": 64,
    "num_layers": 0,
    "lmax": 0,
    "cutoff": 5.0,
    "num_radial": 16,
    "pair_radial": False,
    "avg_num_neighbors": 36.0,
    "elements": [28, 29, 46, 47, 78, 79],
    "final_norm": False,
    "stress": True,
    "repulsion": True,
}
"""Arguments of the ``E2FormerPotential``. EMT's energy of an atom is a function of sums of radial
functions over its neighbours, which is what the embedding of surroundings and the head are without
any attention. With attention between them errors are twice as large in the same time.
"""

SETTINGS: dict[str, Any] = {
    "batch_size": 3,
    "optimizer": "muon",
    "lr": 1e-2,
    "ema": 0.99,
    "clip": 1.0,
}
"""Training settings."""

ENERGY_WEIGHT, STRESS_WEIGHT = 4.0, 30.0
"""Of errors in eV per atom and eV/Å³, beside force errors in eV/Å."""


def load_alloys(split: str) -> list[Data]:
    """The frames of ``"train"`` or ``"val"`` with their edges."""
    frames = NPZDataset(str(RAW), split=split, pre_transform=RadiusGraph(MODEL["cutoff"]))
    return list(frames)


def loss(out: PotentialOutput, data: Batch) -> Tensor:
    """Mean length of force errors and weighted absolute errors of energies and stresses."""
    assert out.forces is not None and out.stress is not None
    forces = ((out.forces - data.forces).square().sum(-1) + 1e-10).sqrt().mean()
    sizes = data.ptr.diff()
    energy = ((out.energy - data.energy) / sizes).abs().mean()
    stress = (out.stress - data.stress).abs().mean()
    return forces + ENERGY_WEIGHT * energy.to(forces.dtype) + STRESS_WEIGHT * stress


def train_alloys(
    minutes: float,
    seed: int = 0,
    checkpoint: Path | None = None,
    pause_after: float = float("inf"),
    frames: Sequence[Data] | None = None,
    clock: Callable[[], float] | None = None,
) -> tuple[E2FormerPotential, dict[str, float]]:
    """A potential, and the number of steps and seconds; arguments are those of ``train``."""
    frames = load_alloys("train") if frames is None else frames
    torch.manual_seed(seed)
    model = E2FormerPotential(**MODEL)
    fit_references(model, frames)
    settings = Settings(minutes=minutes, seed=seed, **SETTINGS)
    trained, state = train(
        model, frames, settings, checkpoint, pause_after, "alloys", loss=loss, clock=clock
    )
    assert isinstance(trained, E2FormerPotential)
    return trained, state


@torch.no_grad()
def alloy_errors(
    model: Callable[[Batch], PotentialOutput], frames: Sequence[Data]
) -> dict[str, float]:
    """Mean absolute errors: energies in meV/atom, forces in meV/Å, stresses in meV/Å³."""
    energies, forces, stresses = [], [], []
    for data in DataLoader(frames, 10):
        out = model(data)
        assert out.forces is not None and out.stress is not None
        energies.append((out.energy - data.energy) / data.ptr.diff())
        forces.append(out.forces - data.forces)
        stresses.append(out.stress - data.stress)
    errors = {
        "energy_mae_mev_per_atom": energies,
        "force_mae_mev_per_angstrom": forces,
        "stress_mae_mev_per_angstrom3": stresses,
    }
    return {name: 1e3 * float(torch.cat(parts).abs().mean()) for name, parts in errors.items()}
