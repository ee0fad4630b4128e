"""The accuracy benchmark runs, keeps what is done and gathers it."""

import json

import accuracy
import numpy as np
import optimizers
import precision
import pytest
import torch
from accuracy_dimenet import has_torch_sparse
from accuracy_gpu import _Frames
from accuracy_models import PeerPotential, PeerProperty, make_model
from accuracy_rows import Row, load, measure, property_loss, trivial
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models import dimenet

from e2former_pyg.transforms import RadiusGraph

PEERS = [
    *("schnet", "visnet"),
    pytest.param(
        "dimenet",
        marks=pytest.mark.skipif(not has_torch_sparse(), reason="needs torch-sparse"),
    ),
]


def crystal(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pos = 3 * torch.rand(3, 3, dtype=dtype, generator=generator)
    cell = 4 * torch.eye(3, dtype=dtype) + 0.3 * torch.rand(3, 3, dtype=dtype, generator=generator)
    data = Data(z=torch.tensor([29, 47, 29]), pos=pos, cell=cell.unsqueeze(0))
    data.pbc = torch.ones(1, 3, dtype=torch.bool)
    return data


@pytest.mark.parametrize("name", PEERS)
def test_forces_and_stress_of_peers_are_derivatives(name):
    torch.manual_seed(0)
    model = PeerPotential(name, stress=True).double().eval()
    data, graph = crystal(), RadiusGraph(5.0)

    def energy(pos, cell):
        moved = Data(z=data.z, pos=pos, cell=cell, pbc=data.pbc)
        return float(model(Batch.from_data_list([graph(moved)])).energy)

    out = model(Batch.from_data_list([graph(data)]))
    step = torch.zeros_like(data.pos)
    step[1, 2] = 1e-4
    slope = (energy(data.pos + step, data.cell) - energy(data.pos - step, data.cell)) / 2e-4
    assert slope == pytest.approx(-float(out.forces[1, 2]), rel=1e-4)
    strain = torch.zeros(3, 3, dtype=torch.float64)
    strain[0, 1] = strain[1, 0] = 5e-5
    plus, minus = (torch.eye(3).double() + sign * strain for sign in (1, -1))
    slope = energy(data.pos @ plus, data.cell @ plus) - energy(data.pos @ minus, data.cell @ minus)
    volume = float(torch.linalg.det(data.cell))
    assert slope / 2e-4 / volume == pytest.approx(float(out.stress[0, 0, 1]), rel=1e-4)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("row", ["qm9-energy", "qm9-gap", "qm9-mu"])
def test_properties_of_peers_do_not_depend_on_other_graphs(name, row):
    torch.manual_seed(0)
    graph = RadiusGraph(5.0)
    first, second = (
        graph(Data(z=torch.tensor([8, 1, 1][:n]), pos=torch.rand(n, 3))) for n in (3, 2)
    )
    model = PeerProperty(name, row, torch.tensor([1.0, 2.0, 4.0])).eval()
    both = model(Batch.from_data_list([first, second]))
    assert both.shape == (2,)
    torch.testing.assert_close(both[:1], model(Batch.from_data_list([first])))


@pytest.mark.skipif(not has_torch_sparse(), reason="needs torch-sparse")
def test_dimenet_is_that_of_pyg(monkeypatch):
    torch.manual_seed(0)
    peer, graph = PeerPotential("dimenet").eval(), RadiusGraph(5.0)
    torch.nn.init.normal_(peer.network.output_blocks[-1].lin.weight)  # zero at first
    frames = [graph(Data(z=torch.tensor([8, 1, 1, 6][:n]), pos=torch.rand(n, 3))) for n in (4, 3)]
    batch = Batch.from_data_list(frames)
    found = peer.values(batch, batch.pos)
    assert found.abs().min() > 0
    monkeypatch.setattr(dimenet, "radius_graph", lambda *_, **__: batch.edge_index)
    expected = dimenet.DimeNetPlusPlus.forward(peer.network, batch.z, batch.pos, batch.batch)
    torch.testing.assert_close(found, expected.flatten())


@pytest.mark.skipif(has_torch_sparse(), reason="torch-sparse is there")
def test_dimenet_says_what_it_needs():
    with pytest.raises(ImportError, match="`dimenet` needs torch-sparse"):
        PeerPotential("dimenet")


def write_molecules(path):
    """Water near its minimum, in the layout of trajectories."""
    rng = np.random.default_rng(0)
    pos = np.array([[0, 0, 0], [0, 0, 1.0], [0, 1.1, 0]]) + 0.1 * rng.random((30, 3, 3))
    np.savez(
        path,
        z=np.array([8, 1, 1], dtype=np.uint8),
        pos=pos.astype(np.float32),
        forces=rng.standard_normal((30, 3, 3)).astype(np.float32),
        energy=-100.0 + rng.random(30),
    )


def write_properties(path):
    """Water and hydroxyl, in the layout of QM9."""
    rng = np.random.default_rng(0)
    sizes = np.array([3, 2] * 10)
    pos = [np.array([[0, 0, 0], [0, 0, 1.0], [0, 1.1, 0]])[:n] for n in sizes]
    np.savez(
        path,
        z=np.concatenate([[8, 1, 1][:n] for n in sizes]).astype(np.uint8),
        pos=(np.concatenate(pos) + 0.1 * rng.random((sizes.sum(), 3))).astype(np.float32),
        ptr=np.concatenate([[0], sizes.cumsum()]),
        energy=np.zeros(20),
        energy_atomization=-3.0 * sizes + 0.1,
        gap=rng.random(20),
        mu=rng.random(20),
        split=np.repeat([0, 1], [16, 4]).astype(np.uint8),
    )


def test_energies_of_elements_are_left_out(tmp_path):
    write_properties(tmp_path / "qm9_subset.npz")
    row = load("qm9-energy", tmp_path, 0, 0)
    assert (len(row.train), len(row.test)) == (16, 4)
    values = torch.cat([data.y for data in (*row.train, *row.test)])
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-6)
    assert trivial("qm9-energy", row)["mae_mev"] == pytest.approx(0, abs=1e-3)


def test_errors_of_properties_are_means_over_molecules(tmp_path):
    write_properties(tmp_path / "qm9_subset.npz")
    row = load("qm9-mu", tmp_path, 0, 0)

    class Vector(torch.nn.Module):
        def forward(self, data):
            return torch.tensor([[0.0, 3.0, 4.0]]).expand(data.num_graphs, -1)

    values = torch.cat([data.y for data in row.test])
    error = measure("qm9-mu", Vector(), row.test)["mae_debye"]
    assert error == pytest.approx(float((5 - values).abs().mean()), rel=1e-5)
    scalar = property_loss(torch.full((4, 1), 0.5), Batch.from_data_list(row.test))
    assert float(scalar) == pytest.approx(float((0.5 - values).abs().mean()), rel=1e-5)
    assert make_model("e2former", "qm9-mu", row)(Batch.from_data_list(row.test)).shape == (4, 3)


@pytest.mark.slow
def test_a_run_is_paused_goes_on_and_is_gathered(tmp_path):
    write_molecules(tmp_path / "xtbmd_ethanol.npz")
    arguments = ["--data", str(tmp_path), "--rows", "ethanol", "--models", "schnet"]
    arguments += ["--train-frames", "20", "--minutes", "0.01", "--threads", "1"]
    arguments += ["--directory", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert accuracy.main([*arguments, "--pause-after", "0.001"]) == 0
    assert not (tmp_path / "accuracy_cpu.json").exists()
    assert accuracy.main(arguments) == 0
    (record,) = json.loads((tmp_path / "accuracy_cpu.json").read_text())
    assert record["case"] == "ethanol/schnet/0" and record["clock"] == "cpu"
    assert (record["training_frames"], record["test_frames"]) == (20, 10)
    assert record["steps"] > 0 and record["test"]["force_mae_mev_per_angstrom"] > 0
    # Runs elsewhere come beside what there is, and again in the place of themselves.
    elsewhere = [*arguments, "--seeds", "1", "--directory", str(tmp_path / "others"), "--add"]
    for _ in range(2):
        assert accuracy.main(elsewhere) == 0
        first, second = json.loads((tmp_path / "accuracy_cpu.json").read_text())
        assert first == record and second["case"] == "ethanol/schnet/1"


@pytest.mark.slow
def test_precision_of_what_was_trained(tmp_path):
    write_molecules(tmp_path / "xtbmd_ethanol.npz")
    shared = ["--data", str(tmp_path), "--rows", "ethanol", "--train-frames", "20"]
    shared += ["--directory", str(tmp_path / "runs"), "--out", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="`--directory` has no run of this row"):
        precision.main(shared)
    accuracy.main([*shared, "--models", "e2former", "--minutes", "0.005"])
    solids = ["--atoms", "64", "--channels", "8"]
    precision.main([*shared, *solids, "--repeats", "2", "--seconds", "0"])
    (trained,) = json.loads((tmp_path / "accuracy_cpu.json").read_text())
    records = json.loads((tmp_path / "precision_cpu.json").read_text())
    records, solids = records[:4], records[4:]
    assert [record["case"].split("/")[:2] for record in solids] == 4 * [["solid", "64"]]
    deviations = [record["relative_deviation"] for record in solids]
    assert deviations[0] == 0 and deviations == sorted(deviations) and 0 < deviations[1] < 1e-4
    names = [record["case"].split("/")[1] for record in records]
    assert names == ["float64", "float32", "autocast", "bfloat16"]
    deviations = [record["deviation_mev_per_angstrom"] for record in records]
    assert deviations[0] == 0 and deviations == sorted(deviations) and deviations[1] > 0
    key = "force_mae_mev_per_angstrom"
    assert records[1]["test"][key] == pytest.approx(trained["test"][key], rel=1e-4)


@pytest.mark.slow
def test_optimizers_and_learning_rates_are_runs_of_their_own(tmp_path):
    write_molecules(tmp_path / "xtbmd_ethanol.npz")
    arguments = ["--data", str(tmp_path), "--models", "schnet", "--lr", "0.001", "0.002"]
    arguments += ["--train-frames", "20", "--minutes", "0.005", "--jobs", "2"]
    assert optimizers.main([*arguments, "--directory", str(tmp_path), "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "optimizers_cpu.json").read_text())
    found = {record["case"]: (record["optimizer"], record["lr"]) for record in records}
    assert found == {
        f"schnet/{name}/{lr:g}/0": (name, lr) for name in ("adamw", "muon") for lr in (1e-3, 2e-3)
    }
    for record in records:
        assert (record["jobs"], record["threads"], record["clock"]) == (2, 1, "cpu")
        assert record["steps"] > 0 and record["environment"]["torch"] == torch.__version__


def test_a_gpu_row_that_is_none(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--data", ".", "--gpu", "--rows", "alloys"])
    assert "--gpu is for rows ethanol" in capsys.readouterr().err


@pytest.mark.cuda
def test_batches_on_a_gpu_are_the_frames(tmp_path):
    write_molecules(tmp_path / "xtbmd_ethanol.npz")
    row: Row = load("ethanol", tmp_path, 0, 20)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for data in _Frames(row.train, 5, generator):
        assert data.edge_index.size(1) == 5 * 6
        seen += data.pos.view(5, 3, 3).cpu().unbind()
    expected = sorted(tuple(frame.pos.flatten().tolist()) for frame in row.train)
    assert sorted(tuple(pos.flatten().tolist()) for pos in seen) == expected
