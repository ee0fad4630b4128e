"""ASE databases in LMDB, with what the rows of OMol25 hold."""

import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential
from e2former_pyg.data import DamagedDataError, OMol25Dataset, omol25
from e2former_pyg.data.aselmdb import ASELMDB, _open
from e2former_pyg.transforms import RadiusGraph

lmdb = pytest.importorskip("lmdb")
pytest.importorskip("ase_db_backends")

MOLECULES = ("OH2", "NaCl", "FeO", "NH4", "OH")
CHARGES = (0, 0, 2, 1, -1)
SPINS = (1, 1, 5, 1, 1)


def molecules(size: int, seed: int = 0) -> list[Atoms]:
    """Molecules with the entries of ``atoms.info`` of the published files."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(size):
        kind = number % len(MOLECULES)
        atoms = Atoms(MOLECULES[kind])
        atoms.positions = 2.0 * np.arange(len(atoms))[:, None] + rng.random((len(atoms), 3))
        # More digits than float32 has.
        results = {
            "energy": -34000.0 - rng.random(),
            "forces": rng.standard_normal((len(atoms), 3)),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info = {
            "source": f"elytes/{seed}/{number}",
            "data_id": "elytes",
            "charge": CHARGES[kind],
            "spin": SPINS[kind],
            "num_atoms": len(atoms),
            "homo_lumo_gap": np.array([rng.random()]),
            "unrestricted": SPINS[kind] > 1,
            "warnings": ["a warning of ORCA"],
            "lowdin_charges": rng.random(len(atoms)),
        }
        out.append(atoms)
    return out


@pytest.fixture
def write(tmp_path):
    def write(size=5, name="data0000.aselmdb", seed=0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with ase.db.connect(path, append=False) as database:
            for atoms in molecules(size, seed):
                database.write(atoms, data=atoms.info)
            database.metadata = {"format_version": 1}
        return path

    return write


def put(path: Path, key: str, value: bytes) -> None:
    """Changes the bytes under a key."""
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as txn:
        txn.put(key.encode(), value)


def replace(path: Path, row_id: int, change) -> None:
    """Writes a row again with other contents."""
    atoms = molecules(row_id)[-1]
    change(atoms)
    atoms.calc.atoms = atoms.copy()  # results are of these atoms, whatever they are now
    with ase.db.connect(path, use_lock_file=False) as database:
        database._write(atoms, {}, atoms.info, idx=row_id)


def assert_is(data, atoms: Atoms, dtype=torch.float64) -> None:
    assert sorted(data.keys()) == ["charge", "energy", "forces", "pos", "spin", "z"]
    assert data.z.tolist() == atoms.numbers.tolist()
    assert data.energy.tolist() == [atoms.get_potential_energy()]
    assert data.energy.dtype == torch.float64
    assert data.charge.tolist() == [atoms.info["charge"]]
    assert data.spin.tolist() == [atoms.info["spin"]]
    assert torch.equal(data.pos, torch.tensor(atoms.positions, dtype=dtype))
    assert torch.equal(data.forces, torch.tensor(atoms.get_forces(), dtype=dtype))


def test_values(write):
    path = write(7)
    dataset = OMol25Dataset(path, dtype=torch.float64)
    assert len(dataset) == 7 and dataset.num_skipped == 0
    assert str(dataset) == "OMol25Dataset(7)"
    for data, atoms in zip(dataset, molecules(7), strict=True):
        assert_is(data, atoms)
    assert_is(dataset[-1], molecules(7)[-1])
    assert_is(OMol25Dataset(path)[4], molecules(7)[4], torch.float32)


def test_files_and_folders(write, tmp_path):
    paths = [write(3, "train/data0001.aselmdb", 1), write(4, "train/data0000.aselmdb", 2)]
    (tmp_path / "train" / "metadata.npz").write_bytes(b"")
    expected = {1: molecules(3, 1), 2: molecules(4, 2)}
    folder = OMol25Dataset(tmp_path / "train", dtype=torch.float64)
    given = OMol25Dataset(paths, dtype=torch.float64)
    assert len(folder) == len(given) == 7
    for dataset, order in ((folder, (2, 1)), (given, (1, 2))):
        atoms = [each for seed in order for each in expected[seed]]
        for data, each in zip(dataset, atoms, strict=True):
            assert_is(data, each)
    assert_is(folder[3:5][1], expected[1][0])
    with pytest.raises(FileNotFoundError, match=r"`path` must hold .aselmdb files, found none"):
        OMol25Dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"`path` must be an existing file.*nothing"):
        OMol25Dataset([paths[0], tmp_path / "nothing"])
    with pytest.raises(FileNotFoundError, match=r"`path` must name at least one file"):
        OMol25Dataset([])


def test_deleted_rows(write):
    path = write(5)
    with ase.db.connect(path, use_lock_file=False) as database:
        database.delete([2, 5])
    dataset = OMol25Dataset(path, dtype=torch.float64)
    for data, row in zip(dataset, (0, 2, 3), strict=True):
        assert_is(data, molecules(5)[row])


def test_labels(write):
    path = write()
    data = OMol25Dataset(path, labels=["homo_lumo_gap"])[1]
    assert data.homo_lumo_gap.tolist() == [molecules(2)[1].info["homo_lumo_gap"].tolist()]
    assert data.homo_lumo_gap.dtype == torch.float64
    with pytest.raises(ValueError, match=r"`labels` must name further values, found \['spin'\]"):
        OMol25Dataset(path, labels=["spin"])
    with pytest.raises(DamagedDataError, match=r"record 0: id 1: it has no \['nbo_charges'\]"):
        OMol25Dataset(path, labels=["nbo_charges"])[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_reach_the_potential(write, num_workers):
    paths = [write(5), write(5, "data0001.aselmdb", 1)]
    dataset = OMol25Dataset(paths, transform=RadiusGraph(4.0))
    first = dataset[0]  # the file is open before the workers start
    loader = DataLoader(dataset, batch_size=5, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        energies = torch.cat([batch.energy for batch in batches]).tolist()
        assert energies == [a.get_potential_energy() for k in (0, 1) for a in molecules(5, k)]
    assert torch.equal(dataset[0].pos, first.pos)  # and still is after they ended
    batch = batches[0]
    assert batch.charge.tolist() == list(CHARGES) and batch.spin.tolist() == list(SPINS)
    options = {"hidden_channels": 8, "num_layers": 1, "lmax": 1, "heads": 2, "num_radial": 8}
    model = E2FormerPotential(**options, cutoff=4.0, charge=True, spin=True)
    torch.testing.assert_close(model(batch).energy[:1], model(first).energy)


@pytest.mark.slow
def test_forked_workers_are_silent(write):
    """Databases of the parent are closed without errors, which pytest would not let through."""
    code = (
        "import sys\n"
        "from torch_geometric.loader import DataLoader\n"
        "from e2former_pyg.data import OMol25Dataset\n"
        "dataset = OMol25Dataset(sys.argv[1:])\n"
        "first = dataset[0]\n"
        "loader = DataLoader(dataset, num_workers=2, multiprocessing_context='fork')\n"
        "print(len([data for _ in range(2) for data in loader]))\n"
    )
    paths = [write(5), write(5, "data0001.aselmdb", 1)]
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "20\n", "")


@pytest.mark.slow
def test_spawned_workers(write):
    dataset = OMol25Dataset(write())
    first = dataset[0]
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader)).pos, first.pos)


def test_several_datasets_share_a_file(write, monkeypatch):
    monkeypatch.setattr(omol25, "MAX_OPEN", 2)
    paths = [write(3, f"data{k}.aselmdb", k) for k in range(4)]
    datasets = [OMol25Dataset(paths, dtype=torch.float64), OMol25Dataset(paths[:1])]
    datasets.append(pickle.loads(pickle.dumps(datasets[0])))
    for index in (0, 11, 1, 5, 8):
        for dataset in (datasets[0], datasets[2]):
            assert_is(dataset[index], molecules(3, index // 3)[index % 3])
        assert_is(datasets[1][1], molecules(3, 0)[1], torch.float32)
        assert len(_open) <= 5
    del dataset, datasets
    assert len(_open) == 0


def test_file_made_anew(write):
    path = write(5)
    OMol25Dataset(path)[0]
    path.unlink()
    write(3, seed=4)
    dataset = OMol25Dataset(path, dtype=torch.float64)
    assert len(dataset) == 3
    assert_is(dataset[1], molecules(3, 4)[1])


def set_info(name, value):
    return lambda atoms: atoms.info.update({name: value})


def set_result(name, value):
    return lambda atoms: atoms.calc.results.update({name: value})


DAMAGES = [
    (set_info("charge", None), r"it has no \['charge'\]"),
    (set_info("spin", 1.5), r"`spin` must be an integer, found 1.5"),
    (set_result("energy", np.nan), r"`energy` must be finite, found nan"),
    (set_result("forces", np.full((5, 3), np.inf)), r"`forces` must be finite, found inf"),
    (set_result("forces", np.zeros((4, 3))), r"`forces` must have shape \[5, 3\], found \[4, 3\]"),
    (lambda atoms: atoms.calc.results.pop("forces"), r"it has no \['forces'\]"),
    (lambda atoms: atoms.set_pbc(True), r"it is periodic, expected a molecule"),
    (lambda atoms: atoms.numbers.fill(0), r"`z` must lie in 1..118, found 0"),
    (b"not compressed", r"ASE cannot read it \(error: Error -3 while decompressing"),
    (zlib.compress(b'{"numbers": [1'), r"ASE cannot read it \(JSONDecodeError"),
    (zlib.compress(b"{}"), r"ASE cannot read it \(AssertionError"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_rows(write, tmp_path, damage, message):
    paths = [write(2), write(5, "data0001.aselmdb")]
    if isinstance(damage, bytes):
        put(paths[1], "4", damage)
    else:
        replace(paths[1], 4, damage)
    dataset = OMol25Dataset(paths)
    assert len(dataset) == 7
    with pytest.raises(DamagedDataError, match=rf"data0001.aselmdb', record 3: id 4: {message}"):
        dataset[5]
    assert dataset[6].z.tolist() == [8, 1]
    for _ in range(2):
        match = r"data0001.aselmdb': 1 damaged records are skipped"
        with pytest.warns(UserWarning, match=match) as caught:
            dataset = OMol25Dataset(paths, tmp_path / "root", skip_damaged=True)
        assert [warning.filename for warning in caught] == [__file__]
        assert len(dataset) == 6 and dataset.num_skipped == 1
        assert [len(data.z) for data in dataset] == [3, 2, 3, 2, 2, 2]


def test_missing_row(write):
    path = write(3)
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as txn:
        txn.delete(b"2")
    with pytest.raises(DamagedDataError, match=r"record 1: id 2: .*Id 2 missing"):
        OMol25Dataset(path)[1]


def test_search_for_damage_goes_on_where_it_stopped(write, tmp_path, monkeypatch):
    paths = [write(4, f"data{k}.aselmdb", k) for k in range(3)]
    replace(paths[0], 2, set_result("energy", np.nan))
    root, read, seen = tmp_path / "root", ASELMDB.row, []

    def stop_in_the_second(database, row_id):
        if (database.path, row_id) == (paths[1], 3):
            raise KeyboardInterrupt
        return read(database, row_id)

    def note(database, row_id):
        seen.append((database.path, row_id))
        return read(database, row_id)

    monkeypatch.setattr(ASELMDB, "row", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        OMol25Dataset(paths, root, skip_damaged=True)
    assert len(list(root.rglob("*.pt"))) == 1
    monkeypatch.setattr(ASELMDB, "row", note)
    for expected in ([(path, n) for path in paths[1:] for n in (1, 2, 3, 4)], []):
        seen.clear()
        with pytest.warns(UserWarning, match="1 damaged"):
            dataset = OMol25Dataset(paths, root, skip_damaged=True)
        assert seen == expected
        assert len(dataset) == 11 and dataset.num_skipped == 1


def test_opening_reads_no_row(write, monkeypatch):
    path = write()
    monkeypatch.setattr(ASELMDB, "row", None)
    assert len(OMol25Dataset(path)) == 5


def test_truncated_file(write, tmp_path):
    # Far more rows than fit on the pages that are always read. Reading beyond the end would be a
    # bus error, which is why this has to be told from the length, and in a process of its own.
    content = write(300).read_bytes()
    sizes = [0, 100, 4096, 5000, 8192, 12288, len(content) // 2, len(content) - 4096]
    paths = [tmp_path / f"{size}.aselmdb" for size in sizes]
    for size, path in zip(sizes, paths, strict=True):
        path.write_bytes(content[:size])
    code = (
        "import sys\n"
        "from e2former_pyg.data import DamagedDataError, OMol25Dataset\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        OMol25Dataset(path)[299]\n"
        "    except DamagedDataError as error:\n"
        "        print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    for size, path, line in zip(sizes, paths, run.stdout.splitlines(), strict=True):
        reason = "it cannot be opened" if size <= 4096 else f"it was cut short: {size} bytes"
        assert line.startswith(f"'{path}': {reason}")


@pytest.mark.parametrize("content", [b"", b"what is this" * 1000])
def test_other_files(tmp_path, content):
    path = tmp_path / "data0000.aselmdb"
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=r"data0000.aselmdb': it cannot be opened"):
        OMol25Dataset(path, skip_damaged=True)


def test_damaged_counts_of_rows(write):
    path = write()
    put(path, "nextid", b"not compressed")
    with pytest.raises(DamagedDataError, match=r"data0000.aselmdb': it cannot be opened"):
        OMol25Dataset(path)


def test_no_row(write):
    with pytest.raises(DamagedDataError, match="no record to use, 0 are damaged"):
        OMol25Dataset(write(0))


@pytest.mark.parametrize("module", ["ase_db_backends.aselmdb", "lmdb"])
def test_backend_is_lazy(write, monkeypatch, module):
    path = write()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"is needed .*'e2former-pyg\[data\]'"):
        OMol25Dataset(path)
