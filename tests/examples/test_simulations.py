"""The examples of simulations, each for seconds, and what they share."""

import math
from pathlib import Path

import md_ethanol
import numpy as np
import pytest
import relax_alloy
import torch
import water_box
from alloy_training import alloy_errors, load_alloys, loss
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ethanol_settings import MODEL
from matplotlib.image import imread
from simulation import drift, energies, last_frame, record, run
from torch_geometric.data import Batch
from water_reference import box, reference

from e2former_pyg import E2FormerPotential, PotentialOutput


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An ethanol potential that was not trained."""
    torch.manual_seed(0)
    potential = E2FormerPotential(**MODEL, repulsion=True)
    potential.references.scale.fill_(0.1)
    path = tmp_path / "potential.safetensors"
    potential.save(path)
    return path


def test_drift_of_a_known_line() -> None:
    times = np.linspace(0, 2, 2001)
    total = -3.0 + 0.004 * times + 0.001 * np.sin(2000 * times)
    trend, spread = drift(times, total, num_atoms=4)
    assert trend == pytest.approx(2.0, rel=1e-2)  # 8 meV of 4 atoms
    assert spread == pytest.approx(0.25 / math.sqrt(2), rel=1e-2)


def test_a_recorded_run_goes_on_without_a_repeated_frame(tmp_path: Path) -> None:
    def start(atoms: Atoms, path: Path, resumed: bool) -> VelocityVerlet:
        atoms.calc = EMT()
        dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
        record(dynamics, path, 5, resumed)
        return dynamics

    first = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])
    assert last_frame(tmp_path / "none.traj") is None
    whole, parts = tmp_path / "whole.traj", tmp_path / "parts.traj"
    assert run(start(first.copy(), whole, False).irun(20), 20, "whole") == 20
    run(start(first.copy(), parts, False).irun(13), 13, "part")  # ends between two frames
    run(start(last_frame(parts), parts, True).irun(10), 10, "rest")
    expected, found = read(whole, ":"), read(parts, ":")
    assert len(expected) == len(found) == 5
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-12)
    values = energies(parts)
    assert values["total"].std() < 1e-3 < values["kinetic"].max()
    np.testing.assert_allclose(values["total"], values["potential"] + values["kinetic"])


def test_a_run_ends_with_its_time() -> None:
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]], calculator=EMT())
    assert 1 <= run(VelocityVerlet(atoms, 0.1).irun(10**6), 10**6, "short", seconds=0.2) < 10**6


@pytest.mark.slow
def test_md_ethanol(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--checkpoint={checkpoint}", f"--output={tmp_path}", "--double", "--seconds=20"]
    first = md_ethanol.main([*options, "--steps=20"])
    assert first["ps"] == pytest.approx(0.01)
    assert first["fluctuation"] < 5.0
    second = md_ethanol.main([*options, "--steps=30", "--resume"])
    assert second["ps"] == pytest.approx(0.025)
    assert f"{second['drift']:+.3f}" in capsys.readouterr().out
    frames = read(tmp_path / "nve.traj", ":")
    assert len(frames) == 6 and len(frames[0]) == 9
    assert imread(tmp_path / "energies.png").ndim == 3


def test_md_ethanol_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        md_ethanol.main([f"--checkpoint={tmp_path / 'none'}"])
    assert "run examples/quickstart.py first" in capsys.readouterr().err


def test_alloys_and_their_loss() -> None:
    train, val = load_alloys("train"), load_alloys("val")
    assert (len(train), len(val)) == (630, 70)
    batch = Batch.from_data_list(val[:3])
    sizes = batch.ptr.diff()
    out = PotentialOutput(
        batch.energy + 0.002 * sizes,
        torch.zeros(batch.num_nodes),
        batch.forces + torch.tensor([0.03, 0.0, 0.04]),
        batch.stress + 1e-3,
    )
    assert float(loss(out, batch)) == pytest.approx(0.05 + 4.0 * 0.002 + 30.0 * 0.001, rel=1e-4)
    errors = alloy_errors(lambda data: out, val[:3])
    assert errors["energy_mae_mev_per_atom"] == pytest.approx(2.0)
    assert errors["force_mae_mev_per_angstrom"] == pytest.approx(70 / 3, rel=1e-4)
    assert errors["stress_mae_mev_per_angstrom3"] == pytest.approx(1.0, rel=1e-4)


def test_alloys_are_those_of_emt() -> None:
    data = load_alloys("val")[0]
    atoms = Atoms(data.z.numpy(), data.pos.double().numpy(), cell=data.cell[0].numpy(), pbc=True)
    atoms.calc = EMT()
    assert float(data.energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(data.forces, atoms.get_forces(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(data.stress[0], atoms.get_stress(voigt=False), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:atoms .* apart")
def test_relax_alloy(tmp_path: Path) -> None:
    results = relax_alloy.main(["--seconds=4", "--steps=3", f"--output={tmp_path}"])
    assert list(results) == ["Cu", "Ag", "Au", "Cu3Au", "PdNi"]
    # What EMT gives is known; what four seconds of training give is not much.
    assert results["Cu"]["emt_energy"] == pytest.approx(-0.007, abs=2e-3)
    assert results["Cu"]["emt_volume"] == pytest.approx(11.57, abs=0.02)
    assert all(math.isfinite(value) for row in results.values() for value in row.values())
    assert len(read(tmp_path / "PdNi.traj", ":")) == 4
    assert imread(tmp_path / "relaxation.png").ndim == 3


def test_reference_water() -> None:
    """The box has the density of water, and its forces are the gradient of its energy."""
    atoms = box()
    assert len(atoms) == 81
    mass = atoms.get_masses().sum() / units.kg / (atoms.get_volume() * 1e-30)
    assert mass == pytest.approx(1000, rel=0.01)
    atoms.calc = reference(atoms)
    forces, start = atoms.get_forces(), atoms.positions.copy()
    for index in ((0, 0), (4, 1), (80, 2)):
        energy = []
        for sign in (1, -1):
            atoms.positions[:] = start
            atoms.positions[index] += sign * 1e-4
            energy.append(atoms.get_potential_energy())
        assert forces[index] == pytest.approx(-(energy[0] - energy[1]) / 2e-4, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:atoms .* apart")
def test_water_box(tmp_path: Path) -> None:
    errors = water_box.main(["--seconds=10", "--steps=200", f"--output={tmp_path}"])
    assert set(errors) == {"energy_mae_mev", "force_mae_mev_per_angstrom", "rdf"}
    assert all(math.isfinite(value) for value in errors.values())
    assert len(read(tmp_path / "reference.traj", ":")) > 5
    assert imread(tmp_path / "rdf.png").ndim == 3
