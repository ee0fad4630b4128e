"""Gradient modes, training and eval, precisions, kinds of forces; nothing given is changed."""

import copy

import pytest
import torch
from torch_geometric.data import Batch

from e2former_pyg.transforms import RadiusGraph


def periodic_batch(lab, dtype=torch.float64):
    """A molecule and a crystal."""
    (z, pos), (zc, posc, cell) = lab.molecule(), lab.crystal()
    graphs = [lab.as_data(z, pos, torch.zeros(3, 3).double()), lab.as_data(zc, posc, cell)]
    for graph in graphs:
        graph.pbc = graph.cell.any().expand(3)
        graph.pos, graph.cell = graph.pos.to(dtype), graph.cell.to(dtype)
    return Batch.from_data_list(graphs)


MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_edges", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_without_gradients(lab, mode, with_edges, training):
    model = lab.make("potential", stress=True).train(training)
    data = periodic_batch(lab)
    if with_edges:
        data = RadiusGraph(4.0)(data)
    expected = model(data)
    with MODES[mode]():
        found = model(data)
        again = model(data.clone())  # whose tensors are made in this mode
    for value, other, want in zip(found, again, expected, strict=True):
        assert not value.requires_grad and not value.is_inference()
        assert lab.relative(value, want) < 1e-14 and lab.relative(other, want) < 1e-14


def test_inference_mode_results_can_be_used_in_training(lab):
    model = lab.make("potential")
    with torch.inference_mode():
        forces = model(*lab.molecule()).forces
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (forces * weight).sum().backward()
    assert torch.equal(weight.grad, forces.sum(0))


@pytest.mark.parametrize("mode", ["grad", *MODES])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_changed(lab, mode, training, tracked):
    model = lab.make("potential", stress=True).train(training)
    data = RadiusGraph(4.0)(periodic_batch(lab))
    data.pos.requires_grad_(tracked)
    before, pos = copy.deepcopy(data.to_dict()), data.pos
    weights = copy.deepcopy(model.state_dict())
    with MODES.get(mode, torch.enable_grad)():
        model(data)
    assert data.pos is pos and pos.requires_grad == tracked and pos.grad is None
    assert data.to_dict().keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(torch.as_tensor(data[key]), torch.as_tensor(value)), key
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_training_mode_tracks_forces(lab):
    model = lab.make("potential", stress=True).train()
    out = model(periodic_batch(lab))
    assert out.forces.requires_grad and out.stress.requires_grad
    (out.forces.square().sum() + out.stress.square().sum()).backward()
    # Only the bias of the last layer, and what leads to it alone, has no influence on forces.
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["energy_head.2.bias"]


def test_eval_mode_does_not_track_forces(lab):
    """Which saves the memory; the energy can still be differentiated afterwards."""
    model = lab.make("potential", stress=True)
    out = model(periodic_batch(lab))
    assert not out.forces.requires_grad and not out.stress.requires_grad
    out.energy.sum().backward()
    assert model.energy_head[2].bias.grad.item() == pytest.approx(1.7 * 11)
    assert all(p.grad is not None for p in model.parameters())


def test_gradients_of_tracked_positions(lab):
    model = lab.make("potential")
    z, pos = lab.molecule()
    pos.requires_grad_()
    out = model(z, pos)
    assert out.forces.requires_grad
    (grad,) = torch.autograd.grad(out.energy.sum(), pos)
    assert lab.relative(-grad, out.forces) < 1e-14


def test_positions_from_a_computation(lab):
    """The energy's gradient reaches what the positions were made from."""
    model = lab.make("potential")
    z, pos = lab.molecule()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = model(z, pos * scale)
    (grad,) = torch.autograd.grad(out.energy.sum(), scale)
    assert lab.relative(grad, -(out.forces * pos).sum()) < 1e-12


def test_frozen_parameters(lab):
    """Also of a lone atom, whose energy then depends on nothing that is tracked."""
    model = lab.make("potential", stress=True)
    data = periodic_batch(lab)
    expected = model(data)
    for training in (False, True):
        model.requires_grad_(False).train(training)
        for value, want in zip(model(data), expected, strict=True):
            assert lab.relative(value, want) < 1e-14
        lone = model(torch.tensor([6]), torch.zeros(1, 3).double())
        assert not lone.forces.any() and not lone.stress.any()


def test_no_forces(lab):
    data = periodic_batch(lab)
    expected = lab.make("potential", stress=True)(data)
    out = lab.make("potential", forces=None)(data)
    assert out.forces is None and out.stress is None
    assert torch.equal(out.energy, expected.energy)
    out = lab.make("potential", forces=None, stress=True)(data)
    assert out.forces is None and lab.relative(out.stress, expected.stress) < 1e-14


@pytest.mark.parametrize("mode", ["grad", *MODES])
def test_direct_forces(lab, mode):
    model = lab.make("potential", forces="direct")
    data = periodic_batch(lab)
    with MODES.get(mode, torch.enable_grad)():
        forces = model(data).forces
    assert forces.shape == data.pos.shape and forces.requires_grad == (mode == "grad")
    model.references.scale.mul_(2)
    assert lab.relative(model(data).forces, 2 * forces) < 1e-14


def test_stress_of_open_graphs_is_zero(lab):
    stress = lab.make("potential", stress=True)(periodic_batch(lab)).stress
    assert not stress[0].any() and stress[1].any()


@pytest.mark.parametrize("pos_dtype", [torch.float32, torch.float64])
def test_precision_of_the_output(lab, pos_dtype):
    """Sums are float64, forces have the dtype of the positions."""
    model = lab.make("potential", stress=True, dtype=torch.float32)
    data = periodic_batch(lab, pos_dtype)
    out = model(data)
    assert out.energy.dtype == out.atomic_energies.dtype == torch.float64
    assert out.forces.dtype == out.stress.dtype == pos_dtype
    expected = model.double()(periodic_batch(lab))
    for value, want in zip(out, expected, strict=True):
        assert lab.relative(value, want) < 1e-5


def test_large_references_do_not_cost_digits(lab):
    """Energies of -1e5 eV, of which float32 would keep two decimals."""
    model = lab.make("potential", dtype=torch.float32)
    z, pos = lab.molecule(dtype=torch.float32)
    before = model(z, pos).energy
    model.references.energies.sub_(1e5)
    assert float((model(z, pos).energy + 8e5 - before).abs()) < 1e-9


def test_float64_positions_keep_digits_far_away(lab):
    """Differences of positions are formed in their own dtype."""
    model = lab.make("potential", dtype=torch.float32)
    z, pos = lab.molecule()
    assert lab.relative(model(z, pos + 1e4).forces, model(z, pos).forces) < 1e-5


def test_given_backbone(lab):
    backbone = lab.make("backbone")
    model = type(lab.make("potential"))(backbone).double()
    assert model.backbone is backbone and model.cutoff == backbone.cutoff == 3.5
    with pytest.raises(ValueError, match=r"`backbone`.*heads"):
        type(model)(backbone, heads=2)


def test_repr(lab):
    text = "E2FormerPotential(E2Former(8, num_layers=2, lmax=2, cutoff=3.5), "
    assert repr(lab.make("potential")) == text + "forces='conservative', stress=False)"
