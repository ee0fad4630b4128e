"""What simulations run into: clear errors and warnings, and frames that are not lost."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.io import Trajectory, read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from e2former_pyg import E2FormerPotential
from e2former_pyg.ase import E2FormerCalculator


@pytest.fixture(params=["molecule", "crystal"])
def atoms(lab, request) -> Atoms:
    atoms = getattr(lab, request.param)()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    atoms.get_potential_energy()
    return atoms


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_not_finite(atoms, value) -> None:
    energy = atoms.get_potential_energy()
    before = atoms.positions[3].copy()
    atoms.positions[3, 1] = value
    for _ in range(2):  # nor is an old result given out
        with pytest.raises(ValueError, match=r"`pos` must be finite, found .* for atom 3"):
            atoms.get_forces()
        assert not atoms.calc.results
    atoms.positions[3] = before
    assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize("rebuild", [True, False], ids=["new-list", "old-list"])
def test_coincident_atoms(atoms, rebuild) -> None:
    """On a list that is new, and on one with a skin where they drift together."""
    if not rebuild:
        atoms.positions[2] = atoms.positions[1] + [0.0, 0.0, 0.15]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms.get_potential_energy()
    builds = atoms.calc.neighbors.num_builds
    atoms.positions[2] = atoms.positions[1]
    message = "`pos` must not hold coincident atoms, (found|got) atoms (1 and 2|2 and 1)"
    with pytest.raises(ValueError, match=message):
        atoms.get_potential_energy()
    assert atoms.calc.neighbors.num_builds == builds


def test_atoms_too_close_are_warned_of_once(atoms) -> None:
    atoms.positions[2] = atoms.positions[1] + [0.0, 0.0, 0.3]
    with pytest.warns(UserWarning, match=r"atoms (1 and 2|2 and 1) are 0.3 Å apart"):
        atoms.get_potential_energy()
    atoms.positions[2, 2] -= 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_potential_energy()


def test_a_lost_atom(lab) -> None:
    """It is allowed, since molecules dissociate, and said."""
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_potential_energy()
    rest = atoms[:-1]
    rest.calc = E2FormerCalculator(lab.make())
    alone = Atoms([atoms.numbers[-1]])
    alone.calc = E2FormerCalculator(lab.make())
    atoms.positions[-1] += [300.0, 0.0, 0.0]
    with pytest.warns(UserWarning, match="atom 8 has no neighbour within 4 Å"):
        energy = atoms.get_potential_energy()
    parts = rest.get_potential_energy() + alone.get_potential_energy()
    assert energy == pytest.approx(parts, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.positions[-1] += [300.0, 0.0, 0.0]
        atoms.get_potential_energy()
        alone.get_potential_energy()  # one atom has none to lose


def test_a_collapsing_cell(lab) -> None:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of atoms too close
        for _ in range(40):
            atoms.set_cell(0.9 * atoms.cell.array, scale_atoms=True)
            try:
                assert np.isfinite(atoms.get_potential_energy())
            except ValueError as error:
                assert "`cell` has collapsed to" in str(error)
                assert "Å³ per atom, expected at least 0.5" in str(error)
                break
        else:
            pytest.fail("nothing was raised")
    assert 0.3 < atoms.get_volume() / len(atoms) < 0.5


@pytest.mark.parametrize("bad", ["flat", "zero", "nan"])
def test_a_cell_without_volume(lab, bad) -> None:
    atoms = lab.crystal()
    cell = atoms.cell.array.copy()
    cell[2] = {"flat": cell[0] + cell[1], "zero": 0.0, "nan": float("nan")}[bad]
    atoms.calc = E2FormerCalculator(lab.make())
    atoms.set_cell(cell)
    with pytest.raises(ValueError, match=r"`cell` (has collapsed|of graph 0 is singular|must be)"):
        atoms.get_potential_energy()


@pytest.mark.parametrize("options", [{}, {"elements": [1, 6, 8]}])
def test_an_element_unseen_in_training(lab, options) -> None:
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(lab.make(**options))
    atoms.numbers[0] = 14
    message = (
        r"`numbers` must be elements that the potential was trained on, \[1, 6, 8\], found \[14\]"
    )
    with pytest.raises(ValueError, match=message):
        atoms.get_potential_energy()
    atoms.numbers[0] = 6
    assert np.isfinite(atoms.get_potential_energy())


def test_elements_are_unknown_without_references() -> None:
    potential = E2FormerPotential(hidden_channels=8, num_layers=1, heads=2, lmax=1)
    assert potential.elements is None
    atoms = Atoms("SiO", [[0, 0, 0], [0, 0, 1.5]], calculator=E2FormerCalculator(potential))
    assert np.isfinite(atoms.get_potential_energy())


def test_results_that_are_not_finite(lab) -> None:
    potential = lab.make()
    with torch.no_grad():
        potential.energy_head[0].weight[0, 0] = float("inf")
    atoms = lab.molecule()
    atoms.calc = E2FormerCalculator(potential)
    with pytest.raises(CalculationFailed, match="the potential gave energy that are not finite"):
        atoms.get_forces()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint(lab, tmp_path, keep) -> None:
    path = tmp_path / "potential.safetensors"
    lab.make().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"`path` is damaged .*potential\.safetensors"):
        E2FormerCalculator(path)


def start(lab, path: Path, seed: int = 0) -> tuple[Atoms, VelocityVerlet]:
    atoms = lab.crystal()
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(seed))
    return atoms, VelocityVerlet(atoms, 0.5 * units.fs, trajectory=str(path))


FAULTS = {
    "not finite": (
        lambda atoms: atoms.positions.__setitem__(2, float("nan")),
        (ValueError, "`pos` must be finite"),
    ),
    "coincident": (
        lambda atoms: atoms.positions.__setitem__(2, atoms.positions[1]),
        (ValueError, "`pos` must not hold coincident atoms"),
    ),
    "collapsed": (
        lambda atoms: atoms.set_cell(0.1 * atoms.cell.array),
        (ValueError, "`cell` has collapsed"),
    ),
    "unseen": (
        lambda atoms: atoms.numbers.__setitem__(0, 14),
        (ValueError, "`numbers` must be elements that the potential was trained on"),
    ),
    "results": (
        lambda atoms: atoms.calc.potential.references.scale.fill_(float("nan")),
        (CalculationFailed, "are not finite"),
    ),
}


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory) -> list[Atoms]:
    """Twelve steps without a fault."""
    path = tmp_path_factory.mktemp("whole") / "whole.traj"
    start(lab, path)[1].run(12)
    return read(path, ":")


def go_on(lab, frame: Atoms, path: Path, steps: int) -> list[Atoms]:
    """All frames after further steps from the last of them."""
    atoms = frame.copy()
    atoms.set_momenta(frame.get_momenta())
    atoms.calc = E2FormerCalculator(lab.make(repulsion=True))
    # A file of its own is as well taken on: here it is appended to.
    options = {"trajectory": str(path), "append_trajectory": True}
    VelocityVerlet(atoms, 0.5 * units.fs, **options).run(steps)
    return read(path, ":")


def check_end(found: Atoms, expected: Atoms) -> None:
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=1e-10)
    assert found.get_total_energy() == pytest.approx(expected.get_total_energy(), abs=1e-9)


@pytest.mark.parametrize("fault, error", FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_run_keeps_its_frames_and_goes_on(lab, tmp_path, whole, fault, error) -> None:
    path = tmp_path / "run.traj"
    atoms, dynamics = start(lab, path)
    dynamics.attach(lambda: dynamics.nsteps == 7 and fault(atoms))
    with pytest.raises(error[0], match=error[1]):
        dynamics.run(12)
    frames = read(path, ":")
    assert len(frames) == 8  # those up to the fault
    for frame, other in zip(frames, whole, strict=False):
        np.testing.assert_array_equal(frame.positions, other.positions)
        assert frame.get_potential_energy() == other.get_potential_energy()
    check_end(go_on(lab, frames[-1], path, 5)[-1], whole[-1])


KILLED = """
import os, sys
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from e2former_pyg.ase import E2FormerCalculator
atoms = read(sys.argv[1])
atoms.calc = E2FormerCalculator(sys.argv[2])
dynamics = VelocityVerlet(atoms, 0.5 * units.fs, trajectory=sys.argv[3])
dynamics.attach(lambda: dynamics.nsteps == 6 and os.kill(os.getpid(), 9))
dynamics.run(20)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_a_trajectory_and_goes_on(lab, tmp_path, whole) -> None:
    atoms, _ = start(lab, tmp_path / "unused.traj")
    atoms.calc = None
    with Trajectory(str(tmp_path / "start.traj"), "w") as trajectory:
        trajectory.write(atoms)
    lab.make(repulsion=True).save(tmp_path / "potential.safetensors")
    names = ("start.traj", "potential.safetensors", "run.traj")
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in names)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == -9, run.stderr
    frames = read(tmp_path / "run.traj", ":")
    assert len(frames) in (6, 7)
    resumed = go_on(lab, frames[-1], tmp_path / "run.traj", 13 - len(frames))
    check_end(resumed[-1], whole[-1])
