"""The accuracy benchmark runs, keeps what is done and gathers it."""

import json

import accuracy
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data


def test_forces_of_visnet_are_the_gradient():
    torch.manual_seed(0)
    model = accuracy.ViSNetPotential(16, 1).double().eval()
    pos = torch.randn(4, 3, dtype=torch.float64)
    z = torch.tensor([6, 1, 8, 1])

    def energy(pos):
        return float(model(Batch.from_data_list([Data(z=z, pos=pos)])).energy)

    forces = model(Batch.from_data_list([Data(z=z, pos=pos)])).forces
    step = torch.zeros_like(pos)
    step[1, 2] = 1e-4
    slope = (energy(pos + step) - energy(pos - step)) / 2e-4
    assert slope == pytest.approx(-float(forces[1, 2]), rel=1e-4)


@pytest.mark.slow
def test_a_run_is_paused_goes_on_and_is_gathered(tmp_path):
    rng = np.random.default_rng(0)
    pos = np.array([[0, 0, 0], [0, 0, 1.0], [0, 1.1, 0]]) + 0.1 * rng.random((30, 3, 3))
    np.savez(
        tmp_path / "xtbmd_ethanol.npz",
        z=np.array([8, 1, 1], dtype=np.uint8),
        pos=pos.astype(np.float32),
        forces=rng.standard_normal((30, 3, 3)).astype(np.float32),
        energy=-100.0 + rng.random(30),
    )
    arguments = ["--data", str(tmp_path), "--rows", "ethanol", "--models", "schnet"]
    arguments += ["--train-frames", "20", "--minutes", "0.01", "--threads", "1"]
    arguments += ["--directory", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert accuracy.main([*arguments, "--pause-after", "0.001"]) == 0
    assert not (tmp_path / "accuracy_cpu.json").exists()
    assert accuracy.main(arguments) == 0
    (record,) = json.loads((tmp_path / "accuracy_cpu.json").read_text())
    assert record["case"] == "ethanol/schnet/0"
    assert (record["training_frames"], record["test_frames"]) == (20, 10)
    assert record["steps"] > 0 and record["test"]["force_mae_mev_per_angstrom"] > 0
