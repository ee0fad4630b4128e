"""Datasets in, batches out."""

import itertools

import numpy as np
import pytest
import torch
from small_runs import MODEL, Frames, make_module, make_trainer

from e2former_pyg import E2FormerProperty
from e2former_pyg.data import NPZDataset
from e2former_pyg.training import E2FormerPropertyModule, GraphDataModule, PredictionWriter
from e2former_pyg.transforms import RadiusGraph


@pytest.fixture
def npz(tmp_path):
    """The frames in this project's layout."""
    frames = Frames(20).frames
    arrays = {key: np.concatenate([frame[key] for frame in frames]) for key in frames[0].to_dict()}
    arrays["ptr"] = np.cumsum([0] + [frame.num_nodes for frame in frames])
    arrays["split"] = np.arange(20) % 4 == 3
    path = tmp_path / "frames.npz"
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return path


def energies(loader):
    return list(itertools.chain(*(batch.energy.tolist() for batch in loader)))


def test_sources_are_made_late_and_once_per_process(npz):
    made = []

    def source(split):
        return lambda: made.append(split) or NPZDataset(npz, split=split)

    data = GraphDataModule(source("train"), source("val"), batch_size=4)
    assert not made
    data.prepare_data()
    assert not data.datasets
    made.clear()
    data.setup("fit")
    data.setup("validate")
    assert made == ["train", "val"]
    stored = np.load(npz)
    assert sorted(energies(data.train_dataloader())) == sorted(stored["energy"][~stored["split"]])
    assert energies(data.val_dataloader()) == stored["energy"][stored["split"]].tolist()
    assert len(data.train_dataloader()) == 4


def test_parts_are_disjoint_and_repeatable():
    frames = Frames(30)
    parts = []
    for seed in (0, 0, 1):
        data = GraphDataModule(frames, val_size=0.2, test_size=5, batch_size=7, seed=seed)
        data.setup("fit")
        parts.append({name: data.datasets[name].indices for name in ("train", "val", "test")})
        assert data.datasets["predict"] is data.datasets["test"]
    assert parts[0] == parts[1] != parts[2]
    assert {name: len(part) for name, part in parts[0].items()} == {
        "train": 19,
        "val": 6,
        "test": 5,
    }
    assert sorted(itertools.chain(*parts[0].values())) == list(range(30))
    data = GraphDataModule(frames, train_size=8, val_size=3, batch_size=7)
    data.setup("fit")
    assert len(data.datasets["train"]) == 8 and len(data.datasets["val"]) == 3


def test_bounds():
    for bound, size in (("max_atoms", "num_nodes"), ("batch_size", "num_graphs")):
        data = GraphDataModule(Frames(30), val_size=10, **{bound: 12}, eval_factor=2.0)
        data.setup("fit")
        train, val = list(data.train_dataloader()), list(data.val_dataloader())
        assert max(getattr(batch, size) for batch in train) <= 12
        assert max(getattr(batch, size) for batch in val) <= 24
        assert max(getattr(batch, size) for batch in val[:1]) > 8


def test_bound_of_edges():
    frames = Frames(30)
    frames.frames = [RadiusGraph(2.0)(frame) for frame in frames.frames]
    edges = [frame.num_edges for frame in frames.frames]
    bound = 3 * max(edges)
    data = GraphDataModule(frames, val_size=10, max_edges=bound)
    data.setup("fit")
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert max(batch.num_edges for batch in batches) <= bound
    assert max(batch.num_edges for batch in batches) > bound - max(edges)
    assert sum(batch.num_edges for batch in batches) == sum(edges)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "one of `max_atoms`, `max_edges` and `batch_size` must be given, got 0 of them"),
        ({"max_atoms": 9, "batch_size": 3}, "must be given, got 2 of them"),
        ({"batch_size": 3, "val": Frames(2), "val_size": 2}, "`val_size` must be 0 with `val`"),
        ({"batch_size": 3, "train_size": 0}, "`train_size` must be positive, got 0"),
        ({"batch_size": 3, "val_size": 30}, "must leave graphs for each part .* 30 there are"),
        ({"batch_size": 3, "val_size": 2, "train": None}, "`train` must be given with sizes"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GraphDataModule(**({"train": Frames(30)} | kwargs)).setup("fit")


def test_missing_sets():
    data = GraphDataModule(Frames(30), batch_size=3)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="`test` must be given, found no such dataset"):
        data.test_dataloader()


def test_predictions(npz, tmp_path):
    """They are in the order of the dataset and in a layout that is read again."""
    module = make_module()
    frames = NPZDataset(npz)
    path = tmp_path / "predicted" / "out.npz"
    data = GraphDataModule(predict=lambda: NPZDataset(npz), max_atoms=20)
    trainer = make_trainer(tmp_path, PredictionWriter(str(path)))
    trainer.predict(module, data, return_predictions=False)
    predicted = NPZDataset(path)
    assert len(predicted) == len(frames)
    module.eval()
    for frame, found in zip(frames, predicted, strict=True):
        with torch.no_grad():
            out = module.model(frame)
        assert torch.equal(found.z, frame.z) and torch.equal(found.pos, frame.pos)
        # Computed in float32, there alone and here in a batch.
        torch.testing.assert_close(found.energy, out.energy, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.forces, out.forces, rtol=1e-4, atol=1e-5)


def test_predictions_of_properties(npz, tmp_path):
    model = E2FormerProperty("0e + 1o", **MODEL)
    data = GraphDataModule(test=lambda: NPZDataset(npz), max_atoms=20)
    trainer = make_trainer(tmp_path, PredictionWriter())
    trainer.predict(E2FormerPropertyModule(model), data, return_predictions=False)
    with torch.no_grad():
        expected = torch.cat([model.eval()(frame) for frame in NPZDataset(npz)])
    found = np.load(tmp_path / "predictions.npz")["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_list_of_graphs():
    data = GraphDataModule(Frames(30).frames, batch_size=3, val_size=6)
    data.setup("fit")
    graphs = sum(batch.num_graphs for batch in data.train_dataloader())
    assert graphs == 24 and sum(batch.num_graphs for batch in data.val_dataloader()) == 6
