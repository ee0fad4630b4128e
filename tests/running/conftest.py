"""Potentials and structures to run simulations with. Scripts and stand-ins beside the tests are
on the path.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from e2former_pyg import E2FormerPotential

if TYPE_CHECKING:
    from ase import Atoms

sys.path.append(str(Path(__file__).parent))

SETTINGS = {
    "hidden_channels": 8,
    "num_layers": 2,
    "lmax": 2,
    "heads": 2,
    "cutoff": 3.5,
    "num_radial": 8,
    "qk_channels": 4,
    "avg_num_neighbors": 6.0,
}
ELEMENTS = (1, 6, 8)


def make(dtype=torch.float64, scale: float = 0.3, seed: int = 0, **options) -> E2FormerPotential:
    """A small potential: not trained, but smooth and not trivial, for H, C and O."""
    torch.manual_seed(seed)
    potential = E2FormerPotential(**(SETTINGS | options)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in potential.parameters():
        if not parameter.any():  # zeros could hide what they multiply
            values = 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.data.copy_(values)
    energies = torch.tensor([-1.3, -5.1, -7.7], dtype=torch.float64)
    potential.references.energies[list(ELEMENTS)] = energies
    potential.references.scale.fill_(scale)
    return potential.eval()


def molecule() -> Atoms:
    """Nine atoms in no plane."""
    from ase import Atoms

    positions = [
        [0.0, 0.0, 0.0],
        [1.5, 0.1, -0.1],
        [2.0, 1.35, 0.2],
        [-0.4, -0.5, 0.9],
        [-0.4, -0.5, -0.95],
        [-0.35, 1.0, 0.1],
        [1.9, -0.5, 0.8],
        [1.85, -0.45, -1.0],
        [2.95, 1.3, 0.3],
    ]
    return Atoms("CCOH6", positions)


def crystal(repeat: int = 1) -> Atoms:
    """A triclinic cell with heights below the cutoff, some of its atoms outside of it."""
    from ase import Atoms

    cell = np.array([[4.4, 0.0, 0.0], [0.9, 4.0, 0.0], [-0.6, 0.7, 4.6]])
    scaled = [[0, 0, 0], [0.5, 0.45, 0.1], [0.1, 0.5, 0.55], [0.55, 0.05, 0.6], [1.25, 0.2, -0.3]]
    noise = np.random.default_rng(0).normal(scale=0.05, size=(5, 3))
    atoms = Atoms("COHOC", scaled @ cell + noise, cell=cell, pbc=True)
    return atoms.repeat((repeat, 1, 1))


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(make=make, molecule=molecule, crystal=crystal, elements=ELEMENTS)
