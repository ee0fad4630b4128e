"""Extended XYZ and other files that ASE reads."""

import gzip
import sys

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential
from e2former_pyg.data import ASEDataset, DamagedDataError
from e2former_pyg.transforms import RadiusGraph

ase = pytest.importorskip("ase")
ase_io = pytest.importorskip("ase.io")
from ase.calculators.singlepoint import SinglePointCalculator  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402

# As other programs write it: one molecule, one crystal whose labels have names of their own.
MOLECULE = """\
3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-2079.123456789012 charge=-1 spin=2 pbc="F F F"
O 0.0 0.0 0.1 0.1 -0.2 0.3
H 0.0 0.76 -0.5 0.4 0.5 0.6
H 0.0 -0.76 -0.5 -0.5 -0.3 -0.9
"""
CRYSTAL = """\
2
Lattice="4.1 0 0 0.2 4.2 0 0.3 0.4 4.3" Properties=species:S:1:pos:R:3:f:R:3 \
E=-7.5 S="1 2 3 2 4 5 3 5 6" pbc="T T T"
Cu 0.1 0.0 0.0 0.1 0.2 0.3
Au 2.0 2.0 0.0 -0.1 -0.2 -0.3
"""
KEYS = {"energy": "E", "forces": "f", "stress": "S"}


@pytest.fixture
def write(tmp_path):
    def write(text, name="data.xyz"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def structures(count=4):
    rng = np.random.default_rng(0)
    for index in range(count):
        atoms = ase.Atoms("Cu2", np.diag([2.0, 0.0])[:, [0, 1, 1]] + rng.random((2, 3)))
        if index != 1:
            atoms.cell, atoms.pbc = 4.0 * np.eye(3) + rng.random((3, 3)), True
        atoms.calc = SinglePointCalculator(
            atoms, energy=rng.random(), forces=rng.random((2, 3)), stress=rng.random(6)
        )
        atoms.set_constraint(FixAtoms([0]))
        yield atoms


def test_molecule(write):
    dataset = ASEDataset(write(MOLECULE), dtype=torch.float64)
    assert len(dataset) == 1
    data = dataset[0]
    assert data.z.tolist() == [8, 1, 1]
    assert data.pos.tolist() == [[0.0, 0.0, 0.1], [0.0, 0.76, -0.5], [0.0, -0.76, -0.5]]
    assert data.forces[2].tolist() == [-0.5, -0.3, -0.9]
    assert data.energy.dtype == torch.float64 and data.energy.tolist() == [-2079.123456789012]
    assert data.charge.tolist() == [-1] and data.spin.tolist() == [2]
    assert data.pbc.tolist() == [[False] * 3] and not data.cell.any()
    assert "stress" not in data
    assert ASEDataset(write(MOLECULE))[0].pos.dtype == torch.float32


def test_names_of_labels(write):
    path = write(CRYSTAL)
    assert sorted(ASEDataset(path)[0].keys()) == ["cell", "pbc", "pos", "z"]
    data = ASEDataset(path, keys={**KEYS, "twice": "E"}, dtype=torch.float64)[0]
    assert data.energy.tolist() == data.twice.tolist() == [-7.5]
    assert data.forces[1].tolist() == [-0.1, -0.2, -0.3]
    assert data.stress.tolist() == [[[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]]]
    assert data.cell.tolist() == [[[4.1, 0.0, 0.0], [0.2, 4.2, 0.0], [0.3, 0.4, 4.3]]]
    with pytest.raises(DamagedDataError, match=r"data.xyz', record 0: it has no `REF_energy`"):
        ASEDataset(path, keys={"energy": "REF_energy"})
    with pytest.raises(ValueError, match=r"`keys` must name labels, found \['pos'\]"):
        ASEDataset(path, keys={"pos": "positions"})


def test_labels_must_agree(write):
    path = write(MOLECULE + CRYSTAL)
    match = r"record 1: it lacks \['charge', 'energy', 'forces', 'spin'\], unlike the records"
    with pytest.raises(DamagedDataError, match=match):
        ASEDataset(path)


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "extxyz.gz", "json"])
def test_what_ase_writes(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    ase_io.write(path, list(structures()))
    dataset = ASEDataset(path, keys={"stress": "stress"}, dtype=torch.float64)
    assert len(dataset) == 4
    for data, atoms in zip(dataset, structures(), strict=True):
        assert data.z.tolist() == [29, 29]
        for name, expected in (
            ("pos", atoms.positions),
            ("forces", atoms.get_forces(apply_constraint=False)),
            ("cell", atoms.cell.array[None]),
            ("stress", atoms.get_stress(voigt=False, apply_constraint=False)[None]),
            ("energy", [atoms.get_potential_energy()]),
        ):
            np.testing.assert_allclose(data[name], expected, atol=2e-8, err_msg=name)
        assert data.pbc[0].tolist() == atoms.pbc.tolist()


def test_stress_of_open_systems_is_zero_where_it_is_asked_for(write):
    molecule = MOLECULE.replace("forces", "f").replace("energy", "E")
    molecule = molecule.replace("charge=-1 spin=2", "")
    dataset = ASEDataset(write(molecule + CRYSTAL), keys=KEYS, transform=RadiusGraph(4.0))
    assert [bool(data.stress.any()) for data in dataset] == [False, True]
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch.energy.dtype == torch.float64 and batch.stress.shape == (2, 3, 3)
    model = E2FormerPotential(
        hidden_channels=8, num_layers=1, lmax=1, heads=2, num_radial=8, cutoff=4.0, stress=True
    )
    out = model(batch)
    assert out.stress.shape == (2, 3, 3) and not out.stress[0].any() and out.stress[1].any()


DAMAGES = {
    "nan": (MOLECULE.replace("-2079.123456789012", "nan"), r"`energy` must be finite, found nan"),
    "short": (MOLECULE.rsplit("H", 1)[0], r"expected 3 atoms, found 2"),
    "column": (MOLECULE.replace(" -0.3 -0.9", ""), r"ASE cannot read it"),
    "header": (MOLECULE.replace("3\n", "three\n", 1), r"expected the number of atoms .* 'three'"),
    "element": (MOLECULE.replace("O 0.0", "Qq 0.0"), r"ASE cannot read it"),
    "empty": ("0\n\n", r""),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_damaged_frames(write, name, place):
    text, message = DAMAGES[name]
    frames = [MOLECULE, MOLECULE.replace("-2079", "-2080"), MOLECULE.replace("-2079", "-2081")]
    frames[place] = text
    path = write("".join(frames))
    with pytest.raises(DamagedDataError, match=rf"data.xyz', record {place}: {message}"):
        ASEDataset(path)
    with pytest.warns(UserWarning, match="1 damaged records are skipped"):
        dataset = ASEDataset(path, skip_damaged=True)
    assert dataset.num_skipped == 1
    kept = [-2079 - index for index in range(3) if index != place]
    assert [int(energy) for energy in dataset.energy] == kept


def test_blank_lines_end_nothing(write):
    assert len(ASEDataset(write(MOLECULE + "\n" + MOLECULE + "\n\n"))) == 2


def test_truncated_gzip(tmp_path):
    path = tmp_path / "data.xyz.gz"
    # Long enough for ASE to find the format of what is left.
    noise = np.random.default_rng(0).random((1500, 3))
    frames = [MOLECULE.replace("0.0 0.76 -0.5", "{} {} {}".format(*row)) for row in noise]
    content = gzip.compress("".join(frames).encode())
    path.write_bytes(content[: 3 * len(content) // 4])
    with pytest.raises(
        DamagedDataError, match=r"record 1\d\d\d: the file cannot be read from here"
    ):
        ASEDataset(path)
    with pytest.warns(UserWarning, match="1 damaged records"):
        assert 1000 < len(ASEDataset(path, skip_damaged=True)) < 1500
    path.write_bytes(content[:1000])
    with pytest.raises(DamagedDataError, match=r"data.xyz.gz': ASE cannot tell its format"):
        ASEDataset(path, skip_damaged=True)


def test_truncated_trajectory(tmp_path):
    path = tmp_path / "data.traj"
    ase_io.write(path, list(structures()))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DamagedDataError, match=r"data.traj', record \d: ASE cannot read it"):
        ASEDataset(path, keys={"stress": "stress"})


def test_failing_reader_is_started_again_behind_the_failure(tmp_path, monkeypatch):
    path = tmp_path / "data.traj"
    ase_io.write(path, list(structures()))
    iread = ase_io.iread

    def failing(name, index, format):
        for number, atoms in enumerate(iread(name, index=index, format=format), index.start):
            if number == 2:
                raise OSError("bad sector")
            yield atoms

    monkeypatch.setattr(ase_io, "iread", failing)
    with pytest.raises(DamagedDataError, match=r"record 2: ASE cannot read it .OSError: bad sect"):
        ASEDataset(path)
    with pytest.warns(UserWarning, match="1 damaged records"):
        assert len(ASEDataset(path, skip_damaged=True)) == 3


def test_unknown_format(write):
    with pytest.raises(DamagedDataError, match=r"data.qqq', record 0: .*UnknownFileType"):
        ASEDataset(write("what is this", "data.qqq"))


def test_ase_is_needed_only_to_process(write, tmp_path, monkeypatch):
    path = write(MOLECULE)
    ASEDataset(path, tmp_path / "root")
    for name in [name for name in sys.modules if name.split(".")[0] == "ase"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert len(ASEDataset(path, tmp_path / "root")) == 1
    with pytest.raises(ImportError, match=r"`ase` is needed .*'e2former-pyg\[ase\]'"):
        ASEDataset(path)


def test_a_first_frame_unlike_the_others_is_no_measure(write):
    """Else one frame would be kept, and the good ones thrown away as damaged."""
    without = MOLECULE.replace("energy=-2079", "other=-2079")
    assert without != MOLECULE
    path = write(without + 3 * MOLECULE)
    with pytest.raises(DamagedDataError, match="3 records have other fields than the first"):
        ASEDataset(path, skip_damaged=True)


def test_frames_that_a_filter_leaves_out_are_no_damage(write):
    without = MOLECULE.replace("energy=-2079", "other=-2079")
    path = write(4 * MOLECULE + 2 * without + MOLECULE.replace("-2079", "-2080"))
    with pytest.warns(UserWarning, match="2 damaged records are skipped"):
        dataset = ASEDataset(path, skip_damaged=True, pre_filter=lambda data: data.energy < -2080)
    assert len(dataset) == 1
