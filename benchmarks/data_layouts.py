"""Writes the same molecules in the layouts that ``e2former_pyg.data`` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ase.db
import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch_geometric.data import Dataset

from e2former_pyg.data import NPZDataset, OMol25Dataset, SPICEDataset
from e2former_pyg.units import BOHR, HARTREE


class Molecule(NamedTuple):
    """Conformations of one molecule in eV and Å."""

    z: np.ndarray
    pos: np.ndarray
    energy: np.ndarray
    forces: np.ndarray


def random_molecules(num_records: int, conformations: int = 50, seed: int = 0) -> list[Molecule]:
    """Molecules of 5 to 55 atoms, as many as SPICE has on average, with 50 conformations each."""
    rng = np.random.default_rng(seed)
    out = []
    for start in range(0, num_records, conformations):
        size = min(conformations, num_records - start)
        num_atoms = int(rng.integers(5, 56))
        grid = np.stack(np.unravel_index(np.arange(num_atoms), (4, 4, 4)), axis=-1)
        pos = 1.4 * grid + 0.3 * rng.random((size, num_atoms, 3))
        forces = rng.standard_normal((size, num_atoms, 3))
        z = rng.choice([1, 6, 7, 8], num_atoms)
        out.append(Molecule(z, pos, -1e4 * rng.random(size), forces))
    return out


def write_spice(path: Path, molecules: Sequence[Molecule]) -> None:
    with h5py.File(path, "w") as file:
        for number, (z, pos, energy, forces) in enumerate(molecules):
            group = file.create_group(f"{number:06}")
            group["atomic_numbers"] = z.astype(np.int16)
            group["conformations"] = (pos / BOHR).astype(np.float32)
            group["dft_total_energy"] = energy / HARTREE
            group["dft_total_gradient"] = (forces * (-BOHR / HARTREE)).astype(np.float32)
            for name, text in (("smiles", "[H:1]"), ("subset", "SPICE PubChem Set 1")):
                group.create_dataset(name, data=[text], dtype=h5py.string_dtype())


def write_aselmdb(path: Path, molecules: Sequence[Molecule]) -> None:
    with ase.db.connect(path, append=False) as database:
        for z, pos, energy, forces in molecules:
            for row in range(len(pos)):
                atoms = Atoms(z, pos[row])
                results = {"energy": energy[row], "forces": forces[row]}
                atoms.calc = SinglePointCalculator(atoms, **results)
                database.write(atoms, data={"charge": 0, "spin": 1, "num_atoms": len(z)})


def write_npz(path: Path, molecules: Sequence[Molecule]) -> None:
    sizes = np.concatenate([np.full(len(m.pos), len(m.z)) for m in molecules])
    np.savez(
        path,
        z=np.concatenate([np.tile(m.z, len(m.pos)) for m in molecules]),
        pos=np.concatenate([m.pos.reshape(-1, 3) for m in molecules]).astype(np.float32),
        forces=np.concatenate([m.forces.reshape(-1, 3) for m in molecules]).astype(np.float32),
        energy=np.concatenate([m.energy for m in molecules]),
        ptr=np.concatenate([[0], sizes.cumsum()]),
    )


class Layout(NamedTuple):
    """A file format: its ending, what writes it and what reads it."""

    ending: str
    write: Callable[[Path, Sequence[Molecule]], None]
    read: Callable[..., Dataset]


LAYOUTS = {
    "spice": Layout("hdf5", write_spice, SPICEDataset),
    "aselmdb": Layout("aselmdb", write_aselmdb, OMol25Dataset),
    "npz": Layout("npz", write_npz, NPZDataset),
}
