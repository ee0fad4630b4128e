"""The examples that put our layers into other models, with some steps of training."""

import math
from types import ModuleType

import compose
import numpy as np
import pytest
import swap_attention
import swap_schnet
import torch
from e3nn.o3 import rand_matrix
from ethanol_data import load_ethanol
from molecules_data import RAW, evaluate_loss, load_molecules
from torch_geometric.data import Batch
from torch_geometric.nn import Sequential
from training import SchNetPotential, Settings, train

from e2former_pyg.transforms import RandomRotation

pytestmark = pytest.mark.usefixtures("step_clock")


@pytest.fixture(autouse=True)
def sequential_as_it_was(monkeypatch):
    """A ``Sequential`` of PyG replaces the forward pass of its class by its own, which the next one
    falls back to where its module cannot be imported by name, as here.
    """
    monkeypatch.setattr(Sequential, "forward", Sequential.forward)


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
    errors = swap_schnet.main(["--seconds=20", "--lmax=1"])
    trivial = errors["mean predictor"]["force_mae_mev_per_angstrom"]
    assert list(errors) == ["mean predictor", "SchNet (PyG)", "+ E2FormerConv"]
    assert all(math.isfinite(value) for row in errors.values() for value in row.values())
    # Twenty steps are enough to be better than no forces at all.
    assert errors["+ E2FormerConv"]["force_mae_mev_per_angstrom"] < trivial
    table = capsys.readouterr().out
    for name, values in errors.items():
        (line,) = (line for line in table.splitlines() if line.startswith(name))
        assert f"{values['energy_mae_mev']:.1f}" in line


def test_molecules_are_those_of_the_file() -> None:
    train_set, test_set = load_molecules("gap")
    assert (len(train_set), len(test_set)) == (1200, 300)
    raw = np.load(RAW)
    assert len(set(raw["qm9_index"])) == 1500
    # QM9 rounds to 1e-4 Hartree.
    np.testing.assert_allclose(raw["lumo"] - raw["homo"], raw["gap"], rtol=0, atol=3e-3)
    known = {tuple(data.pos.flatten().tolist()): data for data in train_set + test_set}
    assert len(known) == 1500
    for index in (0, 700, 1499):
        atoms = slice(*raw["ptr"][index : index + 2])
        data = known[tuple(raw["pos"][atoms].flatten().tolist())]
        assert data.z.tolist() == raw["z"][atoms].tolist()
        assert data.y == pytest.approx(float(raw["gap"][index]))
        assert data.num_edges == 2 * int((torch.pdist(data.pos) < 5.0).sum())


@pytest.mark.parametrize("name", ["TransformerConv", "E2FormerAttention"])
def test_graph_transformers_are_invariant(name: str) -> None:
    torch.manual_seed(0)
    model = swap_attention.GraphTransformer(swap_attention.MODELS[name])
    molecules = load_molecules("gap")[0][:3]
    rotate = RandomRotation(rand_matrix())
    with torch.no_grad():
        out = model(Batch.from_data_list(molecules))
        turned = model(Batch.from_data_list([rotate(data.clone()) for data in molecules]))
        alone = model(Batch.from_data_list(molecules[1:2]))
    assert out.shape == (3,)
    torch.testing.assert_close(turned, out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, out[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_swap_attention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    errors = swap_attention.main(["--seconds=40", "--target=homo"])
    assert list(errors) == ["mean predictor", "TransformerConv", "E2FormerAttention"]
    # Both start from the mean, and 40 steps are enough to do better.
    assert all(math.isfinite(value) for value in errors.values())
    assert max(errors.values()) == errors["mean predictor"]
    table = capsys.readouterr().out
    for name, value in errors.items():
        (line,) = (line for line in table.splitlines() if line.startswith(name))
        assert f"{value:.3f}" in line


def test_dipole_moves_with_the_molecule() -> None:
    """It is rotated and mirrored along, does not depend on the origin, and is not zero."""
    torch.manual_seed(0)
    model = compose.DipoleModel()
    molecules = load_molecules("mu")[0][:4]
    with torch.no_grad():
        out = model(Batch.from_data_list(molecules))
        shifted = Batch.from_data_list(molecules)
        shifted.pos = shifted.pos + torch.tensor([1.0, -2.0, 3.0])
        moved = model(shifted)
    assert out.shape == (4, 3)
    assert float(out.norm(dim=-1).min()) > 1e-3
    torch.testing.assert_close(moved, out, rtol=1e-4, atol=1e-4)
    rotation = rand_matrix()
    for matrix in (rotation, -rotation):
        assert compose.equivariance_error(model, molecules, matrix) < 1e-5


def test_equivariance_error_sees_a_constant_vector() -> None:
    model = compose.DipoleModel()
    molecules = load_molecules("mu")[0][:4]
    model.register_forward_hook(lambda module, args, out: out + 1.0)
    assert compose.equivariance_error(model, molecules, rand_matrix()) > 0.01


@pytest.mark.parametrize("example", [swap_attention, compose])
def test_training_lowers_the_loss(example: ModuleType) -> None:
    torch.manual_seed(0)
    if example is compose:
        model, molecules = compose.DipoleModel(), load_molecules("mu")[0][:16]
    else:
        model = swap_attention.GraphTransformer(swap_attention.EquivariantAttention)
        molecules = load_molecules("gap")[0][:16]
    before = evaluate_loss(model, molecules, example.loss)
    settings = Settings(minutes=30 / 60, batch_size=16)  # 30 steps
    trained, state = train(model, molecules, settings, loss=example.loss)
    assert state["step"] == 30
    assert evaluate_loss(trained, molecules, example.loss) < 0.7 * before


@pytest.mark.slow
def test_compose_runs(capsys: pytest.CaptureFixture[str]) -> None:
    errors = compose.main(["--seconds=60"])
    assert math.isfinite(errors["model"])
    assert errors["model"] < errors["mean predictor"]
    assert max(errors["rotation"], errors["mirror image"]) < 1e-5
    text = capsys.readouterr().out
    assert f"{errors['model']:.3f}" in text
    assert f"{errors['rotation']:.1e}" in text
