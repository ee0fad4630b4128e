"""Processed files: whole or absent, and never those of other sources or settings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from e2former_pyg.data import DamagedDataError, NPZDataset
from e2former_pyg.data.cache import save_atomically
from e2former_pyg.transforms import RadiusGraph, RandomRotation, SelectTarget


class Count:
    """A pre-transform that counts its calls, and stops at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls, self.stop = 0, stop

    def __call__(self, data):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return data

    def __repr__(self) -> str:
        return "Count()"


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "processed").glob("*"))


def test_processed_once(molecule, write_npz, tmp_path):
    path, root, count = write_npz(molecule), tmp_path / "root", Count()
    first = NPZDataset(path, root, pre_transform=count)
    assert count.calls == 5 and len(files(root)) == 1
    again = NPZDataset(path, root, pre_transform=count)
    assert count.calls == 5
    for left, right in zip(first, again, strict=True):
        assert left.to_dict().keys() == right.to_dict().keys()
        assert all(torch.equal(left[name], right[name]) for name in left.keys())  # noqa: SIM118
    assert again.energy.dtype == torch.float64
    NPZDataset(path, root, pre_transform=count, force_reload=True)
    assert count.calls == 10 and len(files(root)) == 1
    assert Path(again.processed_paths[0]).is_file() and again.raw_paths == [str(path)]


def test_other_settings_and_sources_are_processed_anew(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    for kwargs, num_edges in (
        ({}, 0),
        ({"pre_transform": RadiusGraph(5.0)}, 6),
        ({"pre_transform": RadiusGraph(1.2)}, 4),
        ({"pre_transform": RadiusGraph(5.0, max_num_neighbors=2)}, 6),
    ):
        assert NPZDataset(path, root, **kwargs)[0].num_edges == num_edges
    assert len(NPZDataset(path, root, pre_filter=lambda data: data.energy < -2079.0)) == 4
    assert len(NPZDataset(path, root, split="val")) == 2
    assert len(files(root)) == 6
    molecule["energy"] += 1.0
    path = write_npz(molecule)
    assert NPZDataset(path, root)[0].energy.tolist() == [molecule["energy"][0]]


def test_damaged_processed_file(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    processed = Path(NPZDataset(path, root).processed_paths[0])
    for content in (processed.read_bytes()[:-500], b"", b"what is this", b"half of it"):
        processed.write_bytes(content)
        with pytest.raises(DamagedDataError, match=rf"{processed.name}': .*force_reload=True"):
            NPZDataset(path, root)
    assert len(NPZDataset(path, root, force_reload=True)) == len(NPZDataset(path, root)) == 5


def test_interrupted_processing_leaves_nothing(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    with pytest.raises(KeyboardInterrupt):
        NPZDataset(path, root, pre_transform=Count(stop=3))
    assert files(root) == []
    assert len(NPZDataset(path, root, pre_transform=Count())) == 5


@pytest.mark.parametrize("old", [None, "old"])
def test_interrupted_writing_keeps_what_was_there(tmp_path, monkeypatch, old):
    path = tmp_path / "processed" / "data.pt"
    if old is not None:
        save_atomically(old, path)

    def save(value, file):
        file.write_bytes(b"half of it")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match="no space left"):
            save_atomically("new", path)
    assert files(tmp_path) == ([] if old is None else ["data.pt"])
    assert old is None or torch.load(path) == old


def test_killed_while_writing(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    code = (
        "import os, signal, sys, torch\n"
        "from e2former_pyg.data import NPZDataset\n"
        "def save(value, file):\n"
        "    file.write_bytes(b'half of it')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = save\n"
        "NPZDataset(sys.argv[1], sys.argv[2])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code, str(path), str(root)], env=env)
    assert run.returncode == -signal.SIGKILL
    assert [name.endswith(".tmp") for name in files(root)] == [True]
    assert np.array_equal(NPZDataset(path, root).energy, molecule["energy"])


def test_functions_and_transforms_are_told_apart_by_what_they_do(molecule, write_npz, tmp_path):
    path, root = write_npz(molecule), tmp_path / "root"
    for cutoff in (1.2, 3.0):
        expected = NPZDataset(path, pre_transform=RadiusGraph(cutoff))[0].edge_index
        for transform in (lambda data, c=cutoff: RadiusGraph(c)(data), closure(cutoff)):
            found = NPZDataset(path, root, pre_transform=transform)[0].edge_index
            assert torch.equal(found, expected)
    for rotation in (torch.eye(3), torch.eye(3).roll(1, 0)):
        found = NPZDataset(path, root, pre_transform=RandomRotation(rotation))[0].pos
        assert torch.allclose(found, NPZDataset(path)[0].pos @ rotation.t())
    first, second = (repr(SelectTarget("a", names=names)) for names in (("a", "b"), ("b", "a")))
    assert first != second


def closure(cutoff):
    return lambda data: RadiusGraph(cutoff)(data)
