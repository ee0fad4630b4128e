"""HDF5 files in the layout of SPICE."""

import pickle
import sys
import tracemalloc
from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential
from e2former_pyg.data import DamagedDataError, SPICEDataset
from e2former_pyg.data.spice import UNITS, formal_charge
from e2former_pyg.transforms import RadiusGraph

h5py = pytest.importorskip("h5py")

MOLECULES = {
    # name: atomic numbers, SMILES, charge, subset, number of conformations
    "103": ([8, 1, 1], "[O:1]([H:2])[H:3]", 0, "SPICE PubChem Set 1", 4),
    "na cl": ([11, 17], "[Na+:1].[Cl-:2]", 0, "SPICE Ion Pairs", 3),
    "nh4": ([7, 1, 1, 1, 1], "[N+:1]([H:2])([H:3])([H:4])[H:5]", 1, "SPICE PubChem Set 1", 2),
    "oh": ([8, 1], "[O-:1][H:2]", -1, "SPICE PubChem Set 1", 3),
}


def molecules() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    out = {}
    for name, (z, smiles, _, subset, size) in MOLECULES.items():
        out[name] = {
            "atomic_numbers": np.array(z, dtype=np.int16),
            "conformations": (
                3.0 * np.arange(len(z))[:, None] + rng.random((size, len(z), 3))
            ).astype(np.float32),
            "dft_total_energy": -76.0 - rng.random(size),
            "dft_total_gradient": rng.standard_normal((size, len(z), 3)).astype(np.float32),
            "formation_energy": -rng.random(size),
            "smiles": np.array([smiles], dtype=object),
            "subset": np.array([subset.encode()], dtype=object),
        }
    return out


@pytest.fixture
def write(tmp_path):
    def write(groups, name="SPICE.hdf5") -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for group, arrays in groups.items():
                for key, value in arrays.items():
                    dtype = h5py.string_dtype() if value.dtype == object else None
                    made = file.create_dataset(f"{group}/{key}", data=value, dtype=dtype)
                    if key in UNITS:
                        made.attrs["units"] = UNITS[key]
        return path

    return write


def test_numbers_of_atoms_without_reading(write):
    dataset = SPICEDataset(write(molecules()))
    for some in (dataset, dataset[3:9], dataset[[11, 0]], dataset[:0]):
        assert some.num_atoms.tolist() == [data.num_nodes for data in some]


def test_values_and_units(write):
    groups = molecules()
    dataset = SPICEDataset(write(groups), dtype=torch.float64)
    assert len(dataset) == 12 and dataset.num_skipped == 0
    assert str(dataset) == "SPICEDataset(12)"
    index = 0
    for name, arrays in groups.items():
        for row in range(len(arrays["dft_total_energy"])):
            data = dataset[index]
            assert sorted(data.keys()) == ["charge", "energy", "forces", "pos", "z"]
            assert data.z.tolist() == MOLECULES[name][0]
            assert data.charge.tolist() == [MOLECULES[name][2]]
            assert data.energy.dtype == torch.float64 and data.energy.shape == (1,)
            gradient = arrays["dft_total_gradient"][row]
            for value, expected in (
                (data.pos, arrays["conformations"][row] * ase.units.Bohr),
                (data.energy, arrays["dft_total_energy"][row] * ase.units.Hartree),
                (data.forces, -gradient * ase.units.Hartree / ase.units.Bohr),
            ):
                np.testing.assert_allclose(value, expected, rtol=1e-6)
            index += 1
    # The digits of a sum of hundreds of eV are kept.
    hartree = 27.211386245981
    assert float(dataset[1].energy) == groups["103"]["dft_total_energy"][1] * hartree
    assert dataset[0].forces.dtype == torch.float64
    assert SPICEDataset(dataset.path)[0].forces.dtype == torch.float32


def test_forces_are_the_derivative_of_the_energy_in_the_units_given(write):
    # E = k |r|^2 / 2 in hartree and bohr.
    groups = {"h": {key: value.copy() for key, value in molecules()["oh"].items()}}
    arrays = groups["h"]
    pos = arrays["conformations"].astype(np.float64)
    arrays["dft_total_energy"] = 0.15 * (pos**2).sum(axis=(1, 2))
    arrays["dft_total_gradient"] = 0.3 * pos
    arrays["conformations"] = pos
    data = SPICEDataset(write(groups), dtype=torch.float64)[1]
    scale = float(data.energy) / float(data.pos.square().sum())
    torch.testing.assert_close(data.forces, -2 * scale * data.pos)


def test_choice_of_subsets_energies_and_charges(write):
    groups = molecules()
    path = write(groups)
    ions = SPICEDataset(path, subsets=["SPICE Ion Pairs"], energy="formation_energy", charge=False)
    assert len(ions) == 3 and "charge" not in ions[0]
    expected = groups["na cl"]["formation_energy"] * ase.units.Hartree
    np.testing.assert_allclose([float(data.energy) for data in ions], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`subsets`: .* has no \['SPICE Water'\]"):
        SPICEDataset(path, subsets=["SPICE Water", "SPICE Ion Pairs"])
    with pytest.raises(ValueError, match=r"`energy` must be one of .* found 'energy'"):
        SPICEDataset(path, energy="energy")


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CC(=O)[O-]", -1),
        ("[Ca+2:1].[Cl-:2]", 1),
        ("[Mg++]", 2),
        ("[O--]", -2),
        ("[13C@@H:1]([H:2])([NH3+:3])[O-:4]", 0),
        ("C-C=N#C", 0),
        ("[H:1][H:2]", 0),
    ],
)
def test_formal_charge(smiles, charge):
    assert formal_charge(smiles) == charge


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_reach_the_potential(write, tmp_path, num_workers):
    dataset = SPICEDataset(write(molecules()), tmp_path / "root", transform=RadiusGraph(4.0))
    first = dataset[0]  # the file is open before the workers start
    batch = next(iter(DataLoader(dataset, batch_size=12, num_workers=num_workers)))
    assert batch.energy.shape == batch.charge.shape == (12,)
    assert batch.energy.dtype == torch.float64
    assert torch.equal(batch[0].pos, first.pos)
    model = E2FormerPotential(
        hidden_channels=8, num_layers=1, lmax=1, heads=2, num_radial=8, cutoff=4.0, charge=True
    )
    out = model(batch)
    torch.testing.assert_close(out.energy[:1], model(first).energy)
    assert out.forces.shape == batch.forces.shape


def test_parts_and_pickles(write):
    dataset = SPICEDataset(write(molecules()))
    assert torch.equal(dataset[4:7][1].pos, dataset[5].pos)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[5].pos, dataset[5].pos)


def test_index_is_kept(write, tmp_path, monkeypatch):
    path, root = write(molecules()), tmp_path / "root"
    first = SPICEDataset(path, root)[7]
    processed = list((root / "processed").iterdir())
    assert len(processed) == 1
    with monkeypatch.context() as patch:
        patch.setattr(SPICEDataset, "_index", None)
        assert torch.equal(SPICEDataset(path, root)[7].pos, first.pos)
    SPICEDataset(path, root, charge=False)
    assert len(list((root / "processed").iterdir())) == 2


def test_interrupted_indexing_leaves_nothing(write, tmp_path, monkeypatch):
    path, root = write(molecules()), tmp_path / "root"

    def stop(self, group):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SPICEDataset, "_check_molecule", stop)
        with pytest.raises(KeyboardInterrupt):
            SPICEDataset(path, root)
    assert not list(root.rglob("*.pt"))
    assert len(SPICEDataset(path, root)) == 12


def set_nan(name, where):
    def damage(arrays):
        arrays[name][where] = np.nan

    return damage


def replace(name, change):
    def damage(arrays):
        arrays[name] = change(arrays[name])

    return damage


# Molecule "na cl" has the records 4 to 6.
DAMAGES = [
    (set_nan("dft_total_energy", 1), 5, 1, r"`dft_total_energy` must be finite"),
    (set_nan("dft_total_gradient", (2, 1, 0)), 6, 1, r"`dft_total_gradient` must be finite"),
    (set_nan("conformations", (slice(1, 3), 0)), 5, 2, r"`conformations` must be finite"),
    (replace("dft_total_energy", lambda v: v[:2]), 4, 3, r"`dft_total_energy` must have shape \[3"),
    (replace("conformations", lambda v: v[:, :1]), 4, 3, r"`conf.* \[3, 2, 3\], found \[3, 1, 3\]"),
    (replace("atomic_numbers", lambda v: 0 * v), 4, 3, r"`z` must lie in 1..118, found 0"),
    (lambda arrays: arrays.pop("smiles"), 4, 3, r"it has no `smiles` for `charge=True`"),
    (lambda arrays: arrays.pop("dft_total_gradient"), 4, 3, r".*dft_total_gradient"),
    (lambda arrays: arrays.pop("conformations"), 4, 1, r".*conformations"),
]


@pytest.mark.parametrize(("damage", "record", "count", "message"), DAMAGES)
def test_damaged_records(write, tmp_path, damage, record, count, message):
    groups = molecules()
    damage(groups["na cl"])
    path = write(groups)
    place = rf"SPICE.hdf5', record {record}: molecule 'na cl', conformation {record - 4}: {message}"
    with pytest.raises(DamagedDataError, match=place):
        SPICEDataset(path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"{count} damaged records are skipped") as caught:
            dataset = SPICEDataset(path, tmp_path / "root", skip_damaged=True)
        assert caught[0].filename == __file__
        assert dataset.num_skipped == count
        assert len(dataset) == (9 if count in (1, 3) and record == 4 else 12 - count)
        assert all(bool(data.pos.isfinite().all()) for data in dataset)


def test_damage_beside_the_subsets_is_none(write):
    groups = molecules()
    groups["na cl"]["dft_total_energy"][:] = np.nan
    assert len(SPICEDataset(write(groups), subsets=["SPICE PubChem Set 1"])) == 9


@pytest.mark.parametrize("size", [0, 100, 0.5, 0.99])
def test_truncated_file(write, size):
    path = write(molecules())
    content = path.read_bytes()
    path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    with pytest.raises(DamagedDataError, match=r"SPICE.hdf5': it is no readable HDF5 file"):
        SPICEDataset(path, skip_damaged=True)


def test_damage_after_indexing_names_the_record(write, tmp_path):
    path = write(molecules())
    dataset = SPICEDataset(path)
    dataset._file().close()
    dataset._handle = None
    with h5py.File(path, "a") as file:
        file["nh4/conformations"][1] = np.inf
    with pytest.raises(DamagedDataError, match=r"record 8: molecule 'nh4', conformation 1: `pos`"):
        dataset[8]


def test_molecules_without_conformations(write):
    groups = molecules()
    for name in ("conformations", "dft_total_energy", "dft_total_gradient", "formation_energy"):
        groups["na cl"][name] = np.zeros(0)
    dataset = SPICEDataset(write(groups))
    assert len(dataset) == 9 and dataset.num_skipped == 0
    assert dataset[4].z.tolist() == MOLECULES["nh4"][0]


def test_units_of_the_file(write):
    path = write(molecules())
    with h5py.File(path, "a") as file:
        del file["nh4/conformations"].attrs["units"]  # as in files of the first versions
    assert len(SPICEDataset(path)) == 12
    with h5py.File(path, "a") as file:
        file["nh4/conformations"].attrs["units"] = "angstrom"
    match = r"record 7: molecule 'nh4', .*`conformations` must be in bohr, found 'angstrom'"
    with pytest.raises(DamagedDataError, match=match):
        SPICEDataset(path)


def test_no_conformation(write):
    with pytest.raises(DamagedDataError, match="no record to use, 0 are damaged"):
        SPICEDataset(write({}))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "SPICE.hdf5"
    rng = np.random.default_rng(0)
    arrays = molecules()["nh4"]
    with h5py.File(path, "w") as file:
        for number in range(4):
            for key, value in arrays.items():
                dtype = h5py.string_dtype() if value.dtype == object else None
                if len(value) == 2:  # conformations; the rest belongs to the molecule
                    value = rng.standard_normal((25_000, *value.shape[1:]))
                file.create_dataset(f"{number}/{key}", data=value, dtype=dtype)
    tracemalloc.start()
    try:
        dataset = SPICEDataset(path)
        for index in range(0, len(dataset), 1000):
            dataset[index]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(dataset) == 100_000
    # The positions and gradients of the file take 24 MB.
    assert path.stat().st_size > 24e6
    assert peak < 5e6


def test_h5py_is_lazy(write, monkeypatch):
    path = write(molecules())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"`h5py` is needed .*'e2former-pyg\[data\]'"):
        SPICEDataset(path)
