"""Two processes give what one gives."""

import os
import subprocess
import sys

import numpy as np
import pytest
import small_runs
import torch
from small_runs import Frames, make_module
from torch_geometric.data import Batch

from e2former_pyg.training import GraphDataModule, SizeBatchSampler


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    command = [sys.executable, small_runs.__file__, "two", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    predictions = dict(np.load(root / "predictions.npz"))
    results = [torch.load(root / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    return [result | {"predictions": predictions} for result in results]


@pytest.fixture(scope="module")
def data():
    data = GraphDataModule(Frames(), val_size=7, max_atoms=24)
    data.setup("fit")
    return data


def test_gradients(ranks, data):
    """Those of the first step equal the gradients of one process that has all the graphs."""
    train = data.datasets["train"]
    sizes = torch.tensor([frame.num_nodes for frame in train])
    sampler = SizeBatchSampler(sizes, 24, world_size=2)
    batches = sampler.global_batches(0)[:2]
    atoms = [int(sizes[torch.from_numpy(batch)].sum()) for batch in batches]
    assert atoms[0] != atoms[1]
    for rank, batch in zip(ranks, batches, strict=True):
        assert rank["steps"][0][3] == sorted(float(train[i].energy) for i in batch)
    module = make_module({"dropout": 0.0})
    module.model.double()
    module.trainer = small_runs.make_trainer(None)
    module.fit_constants([Batch.from_data_list(list(train))])
    both = Batch.from_data_list([train[i] for batch in batches for i in batch])
    sums, weights = module.sums(both), module.loss_weights()
    loss = sum(weights[name] * total / count for name, (total, count) in sums.items())
    loss.backward()
    expected = [p.grad for p in module.model.parameters()]
    # The gradients that are recorded are not clipped yet.
    for rank in ranks:
        for ours, theirs in zip(rank["gradients"][0], expected, strict=True):
            assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    assert ranks[0]["steps"][0][1] == pytest.approx(float(loss.detach()), rel=1e-6)


def test_processes_agree(ranks):
    first, second = ranks
    for key in ("gradients", "weights"):
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
    assert first["validation"] == second["validation"]
    assert [step[:3] for step in first["steps"]] == [step[:3] for step in second["steps"]]
    assert [step[3] for step in first["steps"]] != [step[3] for step in second["steps"]]


def test_metrics(ranks, data):
    """Seven graphs of different sizes, in batches of different numbers."""
    module = make_module({"dropout": 0.0})
    module.model.double().load_state_dict(ranks[0]["weights"])
    module.eval()
    energy, per_atom, forces = [], [], []
    for frame in data.datasets["val"]:
        with torch.no_grad():
            out = module.model(frame)
        energy.append((out.energy - frame.energy).abs())
        per_atom.append(energy[-1] / frame.num_nodes)
        forces.append((out.forces - frame.forces).abs().flatten())
    expected = {
        "val/energy_mae_meV": 1e3 * float(torch.cat(energy).mean()),
        "val/energy_mae_meV_per_atom": 1e3 * float(torch.cat(per_atom).mean()),
        "val/force_mae_meV_per_A": 1e3 * float(torch.cat(forces).mean()),
    }
    found = ranks[0]["validation"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)


def test_restart_amid_an_epoch(ranks):
    for rank in ranks:
        assert rank["parts"] == rank["whole"] and len(rank["whole"]) == 7


def test_predictions_are_in_order(ranks):
    """Of eleven graphs, in six batches that the processes took in turn."""
    frames, found = Frames(11), ranks[0]["predictions"]
    assert found["z"].tolist() == torch.cat([frame.z for frame in frames]).tolist()
    assert found["ptr"].tolist() == np.cumsum([0, *(f.num_nodes for f in frames)]).tolist()
    module = make_module({"dropout": 0.0})
    module.model.double().load_state_dict(ranks[0]["weights"])
    module.eval()
    with torch.no_grad():
        energies = [float(module.model(frame).energy) for frame in frames]
    assert found["energy"].tolist() == pytest.approx(energies, rel=1e-9)
