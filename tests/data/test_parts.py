"""Interrupted conversions go on from what was done, and end with the same graphs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from e2former_pyg.data import ASEDataset, NPZDataset, parts
from e2former_pyg.transforms import RadiusGraph

SIZE = 11


class Edges(RadiusGraph):
    """A pre-transform that counts its calls and stops at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__(5.0)
        self.calls, self.stop = 0, stop

    def forward(self, data):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return super().forward(data)


@pytest.fixture(autouse=True)
def keep_every_record(monkeypatch):
    monkeypatch.setattr(parts, "INTERVAL", 0.0)


@pytest.fixture(params=["npz", "xyz", "traj", "ragged"])
def source(request, tmp_path):
    """Eleven frames, of which some readers find the fifth damaged."""
    rng = np.random.default_rng(0)
    pos = 1.5 * np.arange(3)[:, None] + rng.random((SIZE, 3, 3))
    forces, energy = rng.standard_normal((SIZE, 3, 3)), -100.0 * rng.random(SIZE)
    forces[4, 1, 2] = np.nan
    path = tmp_path / f"data.{request.param}"
    if request.param in ("npz", "ragged"):
        path = path.with_suffix(".npz")
        arrays = {"z": np.array([8, 1, 1]), "pos": pos, "forces": forces, "energy": energy}
        if request.param == "ragged":
            arrays |= {"z": np.tile(arrays["z"], SIZE), "ptr": np.arange(0, 3 * SIZE + 1, 3)}
            arrays |= {"pos": pos.reshape(-1, 3), "forces": forces.reshape(-1, 3)}
        np.savez(path, **arrays)
        return NPZDataset, path
    frames = []
    for row in range(SIZE):
        atoms = Atoms("OH2", pos[row])
        atoms.calc = SinglePointCalculator(atoms, energy=energy[row], forces=forces[row])
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz" if request.param == "xyz" else "traj")
    return ASEDataset, path


def processed(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "processed").glob("*"))


def assert_same(left, right) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        ours, theirs = ours.to_dict(), theirs.to_dict()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name


@pytest.mark.filterwarnings("ignore:.*1 damaged records are skipped")
@pytest.mark.parametrize("stops", [[0], [1], [3, 4], [9], [2, 2, 2, 2]])
def test_goes_on_where_it_stopped(source, tmp_path, stops):
    cls, path = source
    root, options = tmp_path / "root", {"skip_damaged": True, "dtype": torch.float64}
    expected = cls(path, pre_transform=Edges(), **options)
    assert len(expected) == 10 and expected.num_skipped == 1
    calls = 0
    for stop in stops:
        edges = Edges(stop)
        with pytest.raises(KeyboardInterrupt):
            cls(path, root, pre_transform=edges, **options)
        calls += edges.calls
        assert not list(root.rglob("*.pt"))
    edges = Edges()
    dataset = cls(path, root, pre_transform=edges, **options)
    assert calls + edges.calls == 10  # no frame was made twice
    assert dataset.num_skipped == 1
    assert_same(dataset, expected)
    assert len(processed(root)) == 1  # the parts are gone
    assert_same(cls(path, root, pre_transform=edges, **options), expected)
    assert calls + edges.calls == 10


def test_parts_of_other_settings_and_sources_are_not_used(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        NPZDataset(path, root, pre_transform=Edges(3))
    edges = Edges()
    NPZDataset(path, root, pre_transform=edges, dtype=torch.float64)
    assert edges.calls == 5
    molecule["energy"] += 1.0
    edges = Edges()
    dataset = NPZDataset(write_npz(molecule), root, pre_transform=edges)
    assert edges.calls == 5
    assert np.array_equal(dataset.energy, molecule["energy"])


def test_force_reload_begins_again(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        NPZDataset(path, root, pre_transform=Edges(3))
    edges = Edges()
    NPZDataset(path, root, pre_transform=edges, force_reload=True)
    assert edges.calls == 5 and len(processed(root)) == 1


def test_damaged_part_is_made_again(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        NPZDataset(path, root, pre_transform=Edges(4))
    kept = sorted((root / "processed").iterdir())
    assert len(kept) == 4
    kept[2].write_bytes(b"half of it")
    edges = Edges()
    dataset = NPZDataset(path, root, pre_transform=edges)
    assert edges.calls == 3
    assert_same(dataset, NPZDataset(path, pre_transform=Edges()))


def test_fields_are_compared_with_those_before_the_interruption(tmp_path):
    path, root = tmp_path / "data.xyz", tmp_path / "root"
    frames = [Atoms("H", [[0, 0, 0]], info={"energy": -1.0}) for _ in range(4)]
    for atoms in frames[2:]:
        atoms.info["charge"] = 1
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(KeyboardInterrupt):
        ASEDataset(path, root, pre_transform=Edges(1))
    with pytest.raises(ValueError, match=r"record 2: it also has \['charge'\]"):
        ASEDataset(path, root, pre_transform=Edges())


def test_short_conversions_write_no_parts(molecule, write_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "INTERVAL", 60.0)
    with pytest.raises(KeyboardInterrupt):
        NPZDataset(write_npz(molecule), tmp_path / "root", pre_transform=Edges(4))
    assert processed(tmp_path / "root") == []


@pytest.mark.slow
def test_killed(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    code = (
        "import os, signal, sys\n"
        "from e2former_pyg.data import NPZDataset, parts\n"
        "parts.INTERVAL = 0.0\n"
        "class Stop:\n"
        "    def __call__(self, data):\n"
        "        if float(data.energy) == float(sys.argv[3]):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return True\n"
        "    def __repr__(self):\n"
        "        return 'Stop()'\n"
        "NPZDataset(sys.argv[1], sys.argv[2], pre_filter=Stop())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    energy = repr(float(molecule["energy"][3]))
    command = [sys.executable, "-c", code, str(path), str(root), energy]
    assert subprocess.run(command, env=env).returncode == -signal.SIGKILL
    assert len(processed(root)) == 3

    class Count:
        calls = 0

        def __call__(self, data):
            self.calls += 1
            return True

        def __repr__(self):
            return "Stop()"

    count = Count()
    dataset = NPZDataset(path, root, pre_filter=count)
    assert count.calls == 2
    assert np.array_equal(dataset.energy, molecule["energy"])
