"""Files in our own layout."""

import warnings

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential
from e2former_pyg.data import DamagedDataError, NPZDataset
from e2former_pyg.transforms import RadiusGraph


def test_frames_of_one_molecule(molecule, write_npz):
    path = write_npz(molecule)
    dataset = NPZDataset(path)
    assert len(dataset) == 5 and dataset.num_skipped == 0
    assert str(dataset) == "NPZDataset(5)"
    for index, data in enumerate(dataset):
        assert sorted(data.keys()) == ["energy", "forces", "pos", "z"]
        assert data.z.dtype == torch.int64 and data.z.tolist() == [8, 1, 1]
        assert data.energy.dtype == torch.float64
        assert data.energy.tolist() == [molecule["energy"][index]]
        for name in ("pos", "forces"):
            assert data[name].dtype == torch.float32
            assert np.array_equal(data[name], molecule[name][index])
        assert data.validate()
    assert [p.name for p in path.parent.iterdir()] == ["data.npz"]  # no root, nothing written


def test_crystals_of_different_sizes(crystals, write_npz):
    dataset = NPZDataset(write_npz(crystals), labels=("gap",), dtype=torch.float64)
    assert [data.num_nodes for data in dataset] == [2, 3, 1]
    for index, data in enumerate(dataset):
        start, stop = crystals["ptr"][index : index + 2]
        for name in ("z", "pos", "forces"):
            assert np.array_equal(data[name], crystals[name][start:stop])
        for name in ("cell", "stress"):
            assert data[name].dtype == torch.float64
            assert np.array_equal(data[name], crystals[name][index : index + 1])
        assert data.pbc.tolist() == [[True, True, False]]
        for name in ("charge", "spin"):
            assert data[name].dtype == torch.int64
        for name in ("charge", "spin", "gap", "energy"):
            assert data[name].tolist() == [crystals[name][index]]


def test_periodicity_of_each_frame(crystals, write_npz):
    crystals["pbc"] = np.array([[True] * 3, [False] * 3, [True, False, True]])
    dataset = NPZDataset(write_npz(crystals))
    assert [data.pbc[0].tolist() for data in dataset] == crystals["pbc"].tolist()


def test_energies_alone_suffice(molecule, write_npz):
    del molecule["forces"]
    assert sorted(NPZDataset(write_npz(molecule))[0].keys()) == ["energy", "pos", "z"]


def test_splits(molecule, write_npz):
    path = write_npz(molecule)
    train, val = NPZDataset(path, split="train"), NPZDataset(path, split="val")
    assert torch.equal(train.energy, torch.from_numpy(molecule["energy"][[0, 1, 3]]))
    assert torch.equal(val.energy, torch.from_numpy(molecule["energy"][[2, 4]]))
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'val'\], found 'tes"):
        NPZDataset(path, split="test")
    del molecule["split"]
    with pytest.raises(ValueError, match=r"`split`: .* has no \['split'\]"):
        NPZDataset(write_npz(molecule), split="val")


def test_unknown_labels_are_refused(molecule, write_npz):
    with pytest.raises(ValueError, match=r"`labels`: .* has no \['gap'\]"):
        NPZDataset(write_npz(molecule), labels=("gap",))


def test_one_frame(molecule, write_npz, tmp_path):
    one = {k: v[:1] if k not in ("z", "meta") else v for k, v in molecule.items()}
    for _ in range(2):
        dataset = NPZDataset(write_npz(one), tmp_path / "root", pre_transform=RadiusGraph(5.0))
        assert len(dataset) == 1
        assert dataset[0].num_edges == 6 and dataset[0].edge_cutoff == 5.0


@pytest.mark.parametrize("when", ["transform", "pre_transform"])
def test_batches_reach_the_potential(crystals, write_npz, tmp_path, when):
    del crystals["charge"], crystals["spin"]
    dataset = NPZDataset(write_npz(crystals), tmp_path / "root", **{when: RadiusGraph(4.0)})
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch.energy.shape == (3,) and batch.energy.dtype == torch.float64
    assert batch.forces.shape == (6, 3) and batch.stress.shape == batch.cell.shape == (3, 3, 3)
    assert batch.ptr.tolist() == [0, 2, 5, 6]
    model = E2FormerPotential(
        hidden_channels=8, num_layers=1, lmax=1, heads=2, num_radial=8, cutoff=4.0
    )
    together = model(batch)
    assert together.energy.shape == (3,) and together.forces.shape == (6, 3)
    single = [model(data) for data in dataset]
    torch.testing.assert_close(torch.cat([out.energy for out in single]), together.energy)
    torch.testing.assert_close(torch.cat([out.forces for out in single]), together.forces)


def test_loader_with_workers(molecule, write_npz):
    dataset = NPZDataset(write_npz(molecule), transform=RadiusGraph(2.0))
    energies = [batch.energy for batch in DataLoader(dataset, batch_size=2, num_workers=1)]
    assert torch.equal(torch.cat(energies), torch.from_numpy(molecule["energy"]))


def damage_energy(arrays):
    arrays["energy"][1] = np.nan
    return r"`energy` must be finite, found nan", 1


def damage_forces(arrays):
    arrays["forces"][3, 2, 1] = np.inf
    return r"`forces` must be finite, found inf", 1


def shorten_energies(arrays):
    arrays["energy"] = arrays["energy"][:3]
    return r"`energy` has 3 entries", 2


def shorten_positions(arrays):
    arrays["pos"] = arrays["pos"][:4]
    return r"`pos` has 4 entries", 1


def drop_atoms(arrays):
    arrays["forces"] = arrays["forces"][:, :2]
    return r"`forces` must have shape \[3, 3\], found \[2, 3\]", 5


@pytest.mark.parametrize(
    "damage", [damage_energy, damage_forces, shorten_energies, shorten_positions, drop_atoms]
)
def test_damaged_frames(molecule, write_npz, damage):
    message, count = damage(molecule)
    path = write_npz(molecule)
    index = {damage_energy: 1, shorten_energies: 3, shorten_positions: 4, drop_atoms: 0}
    place = rf"data.npz', record {index.get(damage, 3)}: {message}"
    with pytest.raises(DamagedDataError, match=place):
        NPZDataset(path)
    if count == 5:
        with pytest.raises(DamagedDataError, match=r"no record to use, 5 are damaged"):
            NPZDataset(path, skip_damaged=True)
        return
    with pytest.warns(UserWarning, match=rf"data.npz': {count} damaged records are skipped"):
        dataset = NPZDataset(path, skip_damaged=True)
    assert dataset.num_skipped == count and len(dataset) == 5 - count


def test_coincident_atoms_are_damage_to_a_transform(molecule, write_npz):
    molecule["pos"][2, 1] = molecule["pos"][2, 0]
    path = write_npz(molecule)
    with pytest.raises(DamagedDataError, match=r"data.npz', record 2: .*coincident"):
        NPZDataset(path, pre_transform=RadiusGraph(3.0))
    with pytest.warns(UserWarning, match="1 damaged records"):
        dataset = NPZDataset(path, pre_transform=RadiusGraph(3.0), skip_damaged=True)
    assert len(dataset) == 4


def test_damaged_ragged_frames(crystals, write_npz):
    crystals["ptr"][2] = 1
    with pytest.raises(DamagedDataError, match=r"record 1: `ptr` must rise .* found 2 before 1"):
        NPZDataset(write_npz(crystals))
    crystals["ptr"][2] = 5
    crystals["z"][2] = 0
    with pytest.raises(DamagedDataError, match=r"record 1: `z` must lie in 1..118, found 0"):
        NPZDataset(write_npz(crystals))
    crystals["ptr"] = crystals["ptr"][:3]
    with pytest.raises(DamagedDataError, match=r"record 2: `pos` has 6 rows, `ptr` ends at 5"):
        NPZDataset(write_npz(crystals))


def test_skipped_count_is_kept(molecule, write_npz, tmp_path):
    damage_energy(molecule)
    path = write_npz(molecule)
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 damaged records") as caught:
            dataset = NPZDataset(path, tmp_path / "root", skip_damaged=True)
        assert caught[0].filename == __file__
        assert dataset.num_skipped == 1 and len(dataset) == 4
    # What was processed with damage skipped does not hide it from those who want to know.
    with pytest.raises(DamagedDataError, match="record 1"):
        NPZDataset(path, tmp_path / "root")


@pytest.mark.parametrize("size", [0, 10, 0.5, 0.95])
def test_truncated_file(molecule, write_npz, size):
    path = write_npz(molecule)
    content = path.read_bytes()
    path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    with pytest.raises(DamagedDataError, match=r"data.npz': it is no readable .npz file"):
        NPZDataset(path, skip_damaged=True)


def test_flipped_bytes(molecule, write_npz):
    path = write_npz(molecule)
    content = bytearray(path.read_bytes())
    at = content.index(b"forces.npy") + 150
    content[at : at + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=r"data.npz': it is no readable .npz file"):
        NPZDataset(path)


@pytest.mark.parametrize("name", ["z", "pos", "energy"])
def test_missing_array(molecule, write_npz, name):
    del molecule[name]
    with pytest.raises(DamagedDataError, match=rf"it has no \['{name}'\]"):
        NPZDataset(write_npz(molecule))


def test_wrong_dimensions(molecule, write_npz):
    molecule["energy"] = np.stack(2 * [molecule["energy"]], axis=1)
    with pytest.raises(DamagedDataError, match=r"`energy` must have 1 dimensions, found shape \["):
        NPZDataset(write_npz(molecule))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be an existing file, found"):
        NPZDataset(tmp_path / "none.npz")


def test_whole_files_give_no_warning(molecule, write_npz):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NPZDataset(write_npz(molecule), skip_damaged=True)


def test_arrays_that_are_longer_than_the_others(molecule, crystals, write_npz):
    longer = {**molecule, "forces": np.concatenate([molecule["forces"], molecule["forces"][:1]])}
    with pytest.raises(DamagedDataError, match=r"record 5: `(pos|energy)` has 5 entries"):
        NPZDataset(write_npz(longer))
    for name in ("z", "forces"):
        longer = {**crystals, name: np.concatenate([crystals[name], crystals[name][:1]])}
        with pytest.raises(DamagedDataError, match=rf"`{name}` has .* rows, `ptr` ends at"):
            NPZDataset(write_npz(longer))
    late = crystals["ptr"] + (np.arange(len(crystals["ptr"])) == 0)
    with pytest.raises(DamagedDataError, match=r"record 0: `ptr` must begin with 0, found 1"):
        NPZDataset(write_npz({**crystals, "ptr": late}))


@pytest.mark.parametrize("labels", ["gap", ["batch"], ["ptr"]])
def test_labels_are_a_list_of_further_names(molecule, write_npz, labels):
    with pytest.raises((TypeError, ValueError), match="`labels` must"):
        NPZDataset(write_npz(molecule), labels=labels)


def test_transforms_that_forget_to_return(molecule, write_npz):
    with pytest.raises(TypeError, match="`pre_transform` must return a Data, got NoneType"):
        NPZDataset(write_npz(molecule), pre_transform=lambda data: None)
