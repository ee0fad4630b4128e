"""Dynamics, relaxation and vibrations with ASE's own tools."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.melchionna import MelchionnaNPT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from ase.vibrations import Vibrations

from e2former_pyg.ase import E2FormerCalculator


def relaxed(lab, name: str, dtype=torch.float64, **kwargs):
    """A structure that dynamics can start from."""
    atoms = getattr(lab, name)()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True), **kwargs)
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=100)
    if dtype != torch.float64:
        atoms.calc = E2FormerCalculator(lab.make(repulsion=True), dtype=dtype, **kwargs)
    return atoms


def heat(atoms, temperature: float, seed: int = 0) -> None:
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(seed))
    Stationary(atoms)


def angular_momentum(atoms) -> np.ndarray:
    return np.cross(atoms.positions, atoms.get_momenta()).sum(0)


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_energy_fluctuates_with_the_square_of_the_step(lab, name) -> None:
    atoms = relaxed(lab, name)
    heat(atoms, 150)
    start = atoms.copy()
    calculator = atoms.calc
    spread = []
    for step, count in ((0.4, 100), (0.2, 200), (0.1, 400)):
        atoms = start.copy()
        atoms.calc = calculator
        energies = []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_total_energy()))
        dynamics.run(count)
        spread.append(np.std(energies))
    assert spread[0] > 1e-8
    # A factor of 4 each; where the list is renewed, nothing jumps.
    assert 3.4 < spread[0] / spread[1] < 4.6
    assert 3.4 < spread[1] / spread[2] < 4.6


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_momentum_is_conserved(lab, name, dtype, limit) -> None:
    atoms = relaxed(lab, name, dtype)
    heat(atoms, 300)
    scale = np.abs(atoms.get_momenta()).sum()
    before, turning = atoms.get_momenta().sum(0), angular_momentum(atoms)
    VelocityVerlet(atoms, 0.5 * units.fs).run(50)
    assert np.abs(atoms.get_momenta().sum(0) - before).max() < limit * scale
    if name == "molecule":
        assert np.abs(turning).max() > 1e-2 * scale
        assert np.abs(angular_momentum(atoms) - turning).max() < limit * scale
    # Of all frames, that is: the forces themselves have neither.
    forces = atoms.get_forces()
    assert np.abs(forces.sum(0)).max() < limit * np.abs(forces).sum()


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_skin_list_gives_the_forces_of_a_fresh_one(lab, name) -> None:
    atoms = relaxed(lab, name, skin=0.4)
    fresh = E2FormerCalculator(lab.make(repulsion=True), skin=0.0)
    heat(atoms, 900)
    compared = []

    def compare() -> None:
        other = atoms.copy()
        other.calc = fresh
        difference = np.abs(other.get_forces() - atoms.get_forces()).max()
        compared.append(difference / np.abs(atoms.get_forces()).max())

    builds = atoms.calc.neighbors.num_builds
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.attach(compare)
    dynamics.run(80)
    assert len(compared) == 81 and max(compared) < 1e-11
    assert 2 <= atoms.calc.neighbors.num_builds - builds < 40
    assert fresh.neighbors.num_builds >= 81


@pytest.mark.parametrize("barostat", ["melchionna", "berendsen"])
def test_constant_pressure(lab, barostat) -> None:
    """The cell changes at each step; energies and stresses are still those of a fresh list."""
    atoms = relaxed(lab, "crystal", skin=0.6)
    # Melchionna's needs an upper triangular cell.
    atoms.set_cell(atoms.cell.standard_form("upper")[0], scale_atoms=True)
    heat(atoms, 300)
    options = {"timestep": 0.5 * units.fs, "temperature_K": 300}
    if barostat == "melchionna":
        dynamics = MelchionnaNPT(
            atoms, externalstress=0.02, ttime=20 * units.fs, pfactor=20.0, **options
        )
    else:
        dynamics = NPTBerendsen(
            atoms,
            pressure_au=0.02,
            taut=20 * units.fs,
            taup=50 * units.fs,
            compressibility_au=0.5,
            **options,
        )
    before, builds = atoms.cell.array.copy(), atoms.calc.neighbors.num_builds
    fresh = E2FormerCalculator(lab.make(repulsion=True), skin=0.0)

    def compare() -> None:
        other = atoms.copy()
        other.calc = fresh
        np.testing.assert_allclose(other.get_forces(), atoms.get_forces(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(other.get_stress(), atoms.get_stress(), rtol=0, atol=1e-11)

    dynamics.attach(compare)
    dynamics.run(40)
    assert np.abs(atoms.cell.array - before).max() > 1e-3
    assert atoms.calc.neighbors.num_builds - builds < 40


def test_langevin_reaches_its_temperature(lab) -> None:
    atoms = relaxed(lab, "molecule")
    heat(atoms, 20)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=300,
        friction=0.2 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    )
    temperatures = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()))
    dynamics.run(250)
    # 27 degrees of freedom, some 40 independent samples: a deviation of 13 K.
    assert np.mean(temperatures[50:]) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("optimizer, fmax", [(BFGS, 1e-3), (FIRE, 2e-2)])
def test_relaxation(lab, optimizer, fmax) -> None:
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    before = atoms.get_potential_energy()
    assert optimizer(atoms, logfile=None).run(fmax=fmax, steps=600)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < fmax
    assert atoms.get_potential_energy() < before - 1e-3


def test_relaxation_of_the_cell(lab) -> None:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    volume = atoms.get_volume()
    # A pressure keeps a potential that was never trained from evaporating.
    pressure = 0.2
    relaxed_cell = FrechetCellFilter(atoms, scalar_pressure=pressure)
    assert BFGS(relaxed_cell, logfile=None).run(fmax=2e-3, steps=400)
    assert abs(atoms.get_volume() / volume - 1) > 0.01
    expected = [-pressure] * 3 + [0.0] * 3
    np.testing.assert_allclose(atoms.get_stress(), expected, rtol=0, atol=2e-3)


def test_vibrations(lab, tmp_path) -> None:
    """The Hessian's, from double backward; six of them cost no energy."""
    atoms = lab.molecule()
    potential = lab.make(repulsion=True)
    atoms.calc = E2FormerCalculator(potential)
    assert BFGS(atoms, logfile=None).run(fmax=1e-6, steps=1500)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3, nfree=4)
    vibrations.run()
    found = np.sort_complex(vibrations.get_energies() ** 2).real

    pos = torch.from_numpy(atoms.positions)
    z = torch.from_numpy(atoms.numbers)
    hessian = torch.autograd.functional.hessian(lambda p: potential(z, p).energy.sum(), pos)
    masses = np.repeat(atoms.get_masses(), 3) ** -0.5
    hessian = masses[:, None] * hessian.reshape(27, 27).numpy() * masses
    unit = units._hbar * units.m / np.sqrt(units._e * units._amu)
    expected = np.linalg.eigvalsh(hessian) * unit**2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * expected.max())
    assert (np.abs(expected) < 1e-8 * expected.max()).sum() >= 6


@pytest.mark.parametrize("repulsion", [False, True])
def test_repulsion_keeps_atoms_apart(lab, repulsion) -> None:
    """Two atoms fly at each other with 10 eV each; the model is untrained."""
    atoms = Atoms("OO", [[0.0, 0.05, 0.0], [0.0, 0.0, 2.2]])
    atoms.calc = E2FormerCalculator(lab.make(repulsion=repulsion))
    speed = np.sqrt(2 * 10.0 / atoms.get_masses()[0])
    atoms.set_velocities([[0.0, 0.0, speed], [0.0, 0.0, -speed]])
    before = atoms.get_total_energy()
    distances = []
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    dynamics.attach(lambda: distances.append(atoms.get_distance(0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of atoms too close
        dynamics.run(200)
    assert (min(distances) > 0.5) == repulsion
    assert (atoms.positions[0, 2] < atoms.positions[1, 2]) == repulsion
    if repulsion:
        assert distances[-1] > 1.5
        assert atoms.get_total_energy() == pytest.approx(before, abs=0.05)
