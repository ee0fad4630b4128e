"""PyG's own MD17 and QM9, offline, on raw files in the layouts that they read."""

import re
import sys
from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.datasets import MD17, QM9
from torch_geometric.transforms import Compose

from e2former_pyg import E2FormerPotential, E2FormerProperty
from e2former_pyg.data import MD17_KEYS, REVISED_MD17_KEYS, NPZDataset
from e2former_pyg.transforms import QM9_TARGETS, ConvertUnits, RadiusGraph, SelectTarget
from e2former_pyg.units import ENERGY_UNITS

ROOT = Path(__file__).parents[2]
KCAL = ase.units.kcal / ase.units.mol
SMALL = {"hidden_channels": 8, "num_layers": 1, "lmax": 1, "heads": 2, "num_radial": 8}


def frames(num_frames: int, total: float) -> dict[str, np.ndarray]:
    """Frames of water in kcal/mol and Å, with total energies around a value."""
    rng = np.random.default_rng(0)
    rest = np.array([[0.0, 0.0, 0.1], [0.0, 0.76, -0.5], [0.0, -0.76, -0.5]])
    return {
        "z": np.array([8, 1, 1], dtype=np.uint8),
        "R": rest + 0.05 * rng.standard_normal((num_frames, 3, 3)),
        "E": total + 10.0 * rng.random((num_frames, 1)),
        "F": 20.0 * rng.standard_normal((num_frames, 3, 3)),
    }


def write_md17(root: Path, name: str, raw: dict[str, np.ndarray]) -> Path:
    """Writes the raw file of one of PyG's names for the trajectories."""
    file = MD17.file_names[name]
    if name.startswith("revised"):
        path = root / "raw" / "rmd17" / "npz_data" / file
        arrays = {
            "nuclear_charges": raw["z"],
            "coords": raw["R"],
            "energies": raw["E"][:, 0],
            "forces": raw["F"],
            "old_indices": np.arange(len(raw["R"])),
            "old_energies": raw["E"][:, 0],
            "old_forces": raw["F"],
        }
    else:
        path = root / name / "raw" / file.replace(".zip", "-train.npz")
        arrays = {**raw, "name": np.array(name), "theory": np.array("DFT"), "type": np.array("d")}
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    if file.endswith(".zip"):
        np.savez(path.with_name(file.replace(".zip", "-test.npz")), **arrays)
    return path


@pytest.mark.parametrize(
    "name", ["ethanol", "salicylic acid", "paracetamol", "revised ethanol", "revised benzene"]
)
@pytest.mark.parametrize("when", ["transform", "pre_transform"])
def test_md17(tmp_path, name, when):
    raw = frames(5, -47_000.0)
    write_md17(tmp_path, name, raw)
    transform = Compose([ConvertUnits(energy="kcal/mol"), RadiusGraph(1.2)])
    dataset = MD17(str(tmp_path), name, **{when: transform})
    assert len(dataset) == 5
    for row, data in enumerate(dataset):
        assert data.z.tolist() == [8, 1, 1]
        np.testing.assert_allclose(data.pos, raw["R"][row], rtol=1e-6)
        np.testing.assert_allclose(data.forces, raw["F"][row] * KCAL, rtol=1e-6)
        assert "force" not in data
        assert data.energy.dtype == torch.float64 and data.energy.shape == (1,)
        np.testing.assert_allclose(data.energy, raw["E"][row] * KCAL, rtol=1e-7)
        near = np.linalg.norm(raw["R"][row][:, None] - raw["R"][row], axis=-1) < 1.2
        assert data.num_edges == near.sum() - 3
    batch = Batch.from_data_list(list(dataset))
    out = E2FormerPotential(cutoff=1.2, **SMALL)(batch)
    assert out.energy.shape == batch.energy.shape and out.forces.shape == batch.forces.shape


def test_md17_coupled_cluster(tmp_path):
    raw = frames(3, -97_000.0)
    write_md17(tmp_path, "ethanol CCSD(T)", raw)
    for train in (True, False):
        dataset = MD17(str(tmp_path), "ethanol CCSD(T)", train, ConvertUnits("kcal/mol"))
        np.testing.assert_allclose(dataset[2].forces, raw["F"][2] * KCAL, rtol=1e-6)


@pytest.mark.parametrize("name", ["ethanol", "revised ethanol", "toluene CCSD(T)"])
def test_float64_route(tmp_path, name):
    """The same frames through our dataset, with all digits of their energies."""
    raw = frames(20, -97_000.0)
    path = write_md17(tmp_path, name, raw)
    keys = REVISED_MD17_KEYS if name.startswith("revised") else MD17_KEYS
    transform = Compose([ConvertUnits(energy="kcal/mol"), RadiusGraph(5.0)])
    dataset = NPZDataset(path, tmp_path / "root", keys=keys, pre_transform=transform)
    train = True if "CCSD" in name else None
    theirs = MD17(str(tmp_path), name, train, transform)
    for row, (data, other) in enumerate(zip(dataset, theirs, strict=True)):
        assert data.energy.tolist() == [float(raw["E"][row, 0]) * ENERGY_UNITS["kcal/mol"]]
        assert set(data.keys()) == set(other.keys())
        for key in ("z", "pos", "forces", "edge_index"):
            torch.testing.assert_close(data[key], other[key], rtol=1e-6, atol=0)
            assert data[key].dtype == other[key].dtype


@pytest.mark.parametrize(
    ("name", "total", "largest", "typical"),
    # Total energies of the original trajectories in kcal/mol; the errors are in meV.
    [("ethanol", -97_200.0, 0.17, 0.10), ("aspirin", -406_700.0, 0.68, 0.39)],
)
def test_what_float32_totals_cost(tmp_path, name, total, largest, typical):
    """The numbers that the documentation gives."""
    text = " ".join((ROOT / "docs" / "guides" / "datasets.rst").read_text().split())
    found = re.search(rf"{name} by up to {largest:.2f} (meV )?\(.*?{typical:.2f}\)", text)
    assert found is not None
    path = write_md17(tmp_path, name, frames(2000, total))
    transform = ConvertUnits(energy="kcal/mol")
    exact = NPZDataset(path, keys=MD17_KEYS, transform=transform).energy
    exact = exact * ENERGY_UNITS["kcal/mol"]  # the attribute of a dataset is not transformed
    rounded = torch.cat([data.energy for data in MD17(str(tmp_path), name, transform=transform)])
    error = 1e3 * (rounded - exact)
    assert float(error.abs().max()) == pytest.approx(largest, abs=0.01)
    assert float(error.square().mean().sqrt()) == pytest.approx(typical, abs=0.01)


def test_keys(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, z=[1], R=np.zeros((2, 1, 3)), E=np.zeros((2, 1)), q=[1, -1])
    data = NPZDataset(path, keys={"pos": "R", "energy": "E", "charge": "q"})[1]
    assert sorted(data.keys()) == ["charge", "energy", "pos", "z"]
    assert data.charge.tolist() == [-1]
    with pytest.raises(ValueError, match=r"`keys`: .* has no \['F'\]"):
        NPZDataset(path, keys=MD17_KEYS)
    with pytest.raises(ValueError, match=r"`keys` must be of .* found \['position'\]"):
        NPZDataset(path, keys={"position": "R"})
    with pytest.raises(ValueError, match=r"it has no \['energy', 'pos'\]"):
        NPZDataset(path)


# Methane, ammonia and water as they are in QM9; charges are left out.
SDF = """gdb_1
     RDKit          3D

  5  4  0  0  0  0  0  0  0  0999 V2000
   -0.0127    1.0858    0.0080 C   0  0  0  0  0  0  0  0  0  0  0  0
    0.0022   -0.0060    0.0020 H   0  0  0  0  0  0  0  0  0  0  0  0
    1.0117    1.4638    0.0003 H   0  0  0  0  0  0  0  0  0  0  0  0
   -0.5408    1.4475   -0.8766 H   0  0  0  0  0  0  0  0  0  0  0  0
   -0.5238    1.4379    0.9064 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
  1  4  1  0
  1  5  1  0
M  END
$$$$
gdb_2
     RDKit          3D

  4  3  0  0  0  0  0  0  0  0999 V2000
   -0.0404    1.0241    0.0626 N   0  0  0  0  0  0  0  0  0  0  0  0
    0.0173    0.0125   -0.0274 H   0  0  0  0  0  0  0  0  0  0  0  0
    0.9158    1.3587   -0.0288 H   0  0  0  0  0  0  0  0  0  0  0  0
   -0.5203    1.3435   -0.7755 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
  1  4  1  0
M  END
$$$$
gdb_3
     RDKit          3D

  3  2  0  0  0  0  0  0  0  0999 V2000
   -0.0344    0.9775    0.0076 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0648    0.0206    0.0015 H   0  0  0  0  0  0  0  0  0  0  0  0
    0.8718    1.3008    0.0007 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
M  END
$$$$
"""
COLUMNS = (
    "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
    "u0_atom,u298_atom,h298_atom,g298_atom"
)


def values() -> np.ndarray:
    """Targets in the units of the file: Hartree, and kcal/mol for those of atomization."""
    out = np.random.default_rng(0).random((3, 19))
    out[:, 10:14] -= 40.0
    return out


def in_ev(row: np.ndarray, name: str) -> float:
    place = {target: (3 + k) % 19 for k, target in enumerate(QM9_TARGETS)}[name]
    factor = ENERGY_UNITS["kcal/mol"] if name.endswith("_atom") else ENERGY_UNITS["Hartree"]
    return row[place] * (factor if name not in ("mu", "alpha", "A") else 1.0)


@pytest.fixture(params=["rdkit", "processed"])
def qm9(request, tmp_path, monkeypatch) -> Path:
    """A folder with raw files of three molecules, of which the second does not count.

    PyG reads other files where RDKit is not installed: molecules that were made of these.
    """
    raw = tmp_path / "raw"
    raw.mkdir()
    if request.param == "rdkit":
        pytest.importorskip("rdkit")
        (raw / "gdb9.sdf").write_text(SDF)
        rows = [",".join(map(repr, row.tolist())) for row in values()]
        lines = [COLUMNS, *(f"gdb_{number},{row}" for number, row in enumerate(rows, 1))]
        (raw / "gdb9.sdf.csv").write_text("\n".join(lines) + "\n")
        skipped = [*["a line of the head"] * 9, "     2   N   a.b   c.d", "1 compounds", ""]
        (raw / "uncharacterized.txt").write_text("\n".join(skipped))
        return tmp_path
    monkeypatch.setitem(sys.modules, "rdkit", None)
    molecules = []
    for index, block in enumerate(SDF.split("$$$$\n")[:-1]):
        lines = block.splitlines()
        num_atoms, num_bonds = int(lines[3][:3]), int(lines[3][3:6])
        atoms = [line.split() for line in lines[4 : 4 + num_atoms]]
        bonds = [line.split() for line in lines[4 + num_atoms : 4 + num_atoms + num_bonds]]
        if index == 1:
            continue
        z = torch.tensor([{"H": 1, "C": 6, "O": 8}[atom[3]] for atom in atoms])
        pairs = torch.tensor([[int(a) - 1, int(b) - 1] for a, b, *_ in bonds]).t()
        y = [in_ev(values()[index], name) for name in QM9_TARGETS]
        molecules.append(
            {
                "x": torch.zeros(num_atoms, 11),
                "z": z,
                "pos": torch.tensor([[float(value) for value in atom[:3]] for atom in atoms]),
                "edge_index": torch.cat([pairs, pairs.flip(0)], dim=1),
                "edge_attr": torch.zeros(2 * num_bonds, 4),
                "y": torch.tensor([y], dtype=torch.float32),
                "smiles": "",
                "name": f"gdb_{index + 1}",
                "idx": index,
            }
        )
    torch.save(molecules, raw / "qm9_v3.pt")
    return tmp_path


@pytest.mark.parametrize("when", ["transform", "pre_transform"])
def test_qm9(qm9, when):
    transform = Compose([SelectTarget(["gap", "U0_atom", "mu"]), RadiusGraph(3.0)])
    dataset = QM9(str(qm9), **{when: transform})
    assert [data.name for data in dataset] == ["gdb_1", "gdb_3"]
    for data, row in zip(dataset, values()[[0, 2]], strict=True):
        expected = [[in_ev(row, name) for name in ("gap", "U0_atom", "mu")]]
        assert data.y.dtype == torch.float32
        np.testing.assert_allclose(data.y, expected, rtol=2e-6)
        # All pairs, in the place of the bonds and what belonged to them.
        num_atoms = data.z.numel()
        assert data.num_edges == num_atoms * (num_atoms - 1) and "edge_attr" not in data
    assert dataset[1].z.tolist() == [8, 1, 1]
    batch = Batch.from_data_list(list(dataset))
    model = E2FormerProperty("0e + 0e + 0e", cutoff=3.0, **SMALL)
    assert model(batch).shape == batch.y.shape == (2, 3)


def test_qm9_is_left_as_it_was(qm9):
    dataset = QM9(str(qm9))
    bonds = dataset[0].edge_index.clone()
    out = Compose([SelectTarget("homo"), RadiusGraph(3.0)])(dataset[0])
    assert out.num_edges == 20
    assert torch.equal(dataset[0].edge_index, bonds) and dataset[0].y.shape == (1, 19)
    assert torch.equal(out.y, dataset[0].y[:, 2:3])


def test_steps_of_total_energies_of_qm9(qm9):
    """The number that ``SelectTarget`` gives, for the mean of all molecules, -411 Hartree."""
    y = QM9(str(qm9))[0].y
    total = torch.tensor(-411 * ENERGY_UNITS["Hartree"], dtype=y.dtype)
    step = total - torch.nextafter(total, torch.tensor(-torch.inf, dtype=y.dtype))
    assert float(step) == pytest.approx(1e-3, rel=0.03)
