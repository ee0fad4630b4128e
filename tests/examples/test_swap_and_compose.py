"""The examples that put our layers into other models, with a second or two of training."""

import math

import pytest
import swap_schnet
import torch
from e3nn.o3 import rand_matrix
from ethanol_data import load_ethanol
from torch_geometric.data import Batch
from training import SchNetPotential

from e2former_pyg.transforms import RandomRotation


def test_swapped_schnet_is_a_potential() -> None:
    """Invariant energies whose negative gradient the forces are, also in a batch."""
    torch.manual_seed(0)
    model = swap_schnet.swapped_potential().double().eval()
    frames = [data.clone() for data in load_ethanol()[:2]]
    for data in frames:
        data.pos = data.pos.double()
    out = model(Batch.from_data_list(frames))
    alone = model(Batch.from_data_list(frames[1:]))
    torch.testing.assert_close(out.energy[1:], alone.energy)

    rotation = rand_matrix(dtype=torch.float64)
    turned = model(Batch.from_data_list([RandomRotation(rotation)(d.clone()) for d in frames]))
    torch.testing.assert_close(turned.energy, out.energy)
    torch.testing.assert_close(turned.forces, out.forces @ rotation.t())

    moved, step = [], 1e-4
    for sign in (1, -1):
        frame = frames[0].clone()
        frame.pos = frame.pos.clone()
        frame.pos[3, 1] += sign * step
        moved.append(float(model(Batch.from_data_list([frame])).energy.detach()))
    slope = (moved[0] - moved[1]) / (2 * step)
    assert float(out.forces[3, 1]) == pytest.approx(-slope, rel=1e-5)


def test_only_interactions_are_swapped() -> None:
    """Everything else has the names and shapes of PyG's SchNet."""

    def rest(model: SchNetPotential) -> dict[str, torch.Size]:
        state = model.state_dict().items()
        return {key: value.shape for key, value in state if ".interactions." not in key}

    assert rest(swap_schnet.swapped_potential()) == rest(SchNetPotential())


@pytest.mark.slow
def test_swap_schnet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    errors = swap_schnet.main(["--seconds=2", "--lmax=1"])
    trivial = errors["mean predictor"]["force_mae_mev_per_angstrom"]
    assert list(errors) == ["mean predictor", "SchNet (PyG)", "+ E2FormerConv"]
    assert all(math.isfinite(value) for row in errors.values() for value in row.values())
    # Two seconds are enough to be better than no forces at all.
    assert errors["+ E2FormerConv"]["force_mae_mev_per_angstrom"] < trivial
    table = capsys.readouterr().out
    for name, values in errors.items():
        (line,) = (line for line in table.splitlines() if line.startswith(name))
        assert f"{values['energy_mae_mev']:.1f}" in line
