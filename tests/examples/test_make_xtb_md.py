"""Frames from molecular dynamics; with tblite, those of the bundled molecules."""

import json
import sys

import ase.io
import make_xtb_md
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ethanol_data import load_ethanol

from e2former_pyg.data import NPZDataset

SHORT = ["--frames=20", "--every=2", "--equilibrate=10"]


class Springs(Calculator):
    """Harmonic bonds, whose atoms move as statistical mechanics says."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        rest = molecule("CH4").get_all_distances()
        vectors = atoms.positions[:, None] - atoms.positions
        lengths = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
        stretch = (lengths - rest) * (rest > 0)
        self.results["energy"] = float(10.0 * (stretch**2).sum() / 2)
        self.results["forces"] = -20.0 * (stretch / lengths)[..., None].repeat(3, -1) * vectors
        self.results["forces"] = self.results["forces"].sum(1)


def test_frames_are_what_the_calculator_says(tmp_path, capsys):
    path = tmp_path / "new" / "ethanol.npz"
    options = ["--calculator=emt", "--seed=3", f"--output={path}", *SHORT]
    assert make_xtb_md.main(["CH3CH2OH", *options]) == path
    assert [each.name for each in path.parent.iterdir()] == ["ethanol.npz"]
    dataset = NPZDataset(path)
    assert len(dataset) == 20
    assert len(NPZDataset(path, split="val")) == 2 and len(NPZDataset(path, split="train")) == 18
    energies = []
    for data in dataset:
        atoms = Atoms(data.z.numpy(), data.pos.double().numpy(), calculator=EMT())
        energies.append(float(data.energy))
        assert energies[-1] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=1e-3)
        np.testing.assert_allclose(atoms.get_center_of_mass(), 0.0, atol=1e-5)
    assert len(set(energies)) == 20
    with np.load(path) as raw:
        assert json.loads(str(raw["meta"]))["temperature"] == 500.0
    assert "20 frames of C2H6O at " in capsys.readouterr().out
    # The seed makes the frames.
    again = make_xtb_md.main(["CH3CH2OH", *options, f"--output={tmp_path / 'again.npz'}"])
    assert NPZDataset(again).energy.tolist() == energies


@pytest.mark.slow
def test_temperature(tmp_path, monkeypatch):
    """The energy of harmonic bonds is that of the temperature asked for."""
    monkeypatch.setattr(make_xtb_md, "make_calculator", lambda name, charge: Springs())
    options = ["--frames=600", "--every=10", "--equilibrate=500", "--temperature=300"]
    path = make_xtb_md.main(["CH4", *options, f"--output={tmp_path / 'a.npz'}"])
    # Nine vibrations with k T / 2 each, k T = 25.9 meV, and some 30 independent samples of them.
    mean = float(NPZDataset(path).energy.mean())
    assert mean == pytest.approx(9 / 2 * 0.02585, rel=0.2)


def test_molecules_from_files(tmp_path):
    path = tmp_path / "water.xyz"
    ase.io.write(path, molecule("H2O"))
    assert make_xtb_md.load_molecule(str(path)).get_chemical_formula() == "H2O"
    with pytest.raises(ValueError, match=r"`molecule` must be a file or a name.*'no such'"):
        make_xtb_md.load_molecule("no such")


def test_broken_bonds_are_refused(tmp_path):
    options = ["--calculator=emt", "--temperature=30000", f"--output={tmp_path / 'a.npz'}"]
    with pytest.raises(RuntimeError, match=r"A bond broke \(.* times its length\)"):
        make_xtb_md.main(["CH3CH2OH", *options, *SHORT])
    assert not list(tmp_path.iterdir())


def test_tblite_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ImportError, match=r"GFN2-xTB needs tblite: pip install tblite"):
        make_xtb_md.main(["CH4", f"--output={tmp_path / 'a.npz'}"])


def test_bundled_frames_come_from_this_calculator(tmp_path):
    """To the noise floor of the forces that the data name, 1e-4 eV/Å."""
    pytest.importorskip("tblite")
    calculator = make_xtb_md.make_calculator("xtb", 0)
    for data in load_ethanol()[::350]:
        atoms = Atoms(data.z.numpy(), data.pos.double().numpy(), calculator=calculator)
        assert float(data.energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(data.forces, atoms.get_forces(), atol=3e-4)


@pytest.mark.slow
def test_dynamics_with_tblite(tmp_path):
    pytest.importorskip("tblite")
    path = make_xtb_md.main(["CH4", "--frames=10", *SHORT[1:], f"--output={tmp_path / 'a.npz'}"])
    dataset = NPZDataset(path)
    assert len(dataset) == 10 and dataset[0].z.tolist() == [6, 1, 1, 1, 1]
