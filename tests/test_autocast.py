"""Inside autocast regions everything runs, to second order, and what needs float32 keeps it."""

import pytest
import torch

from e2former_pyg import E2FormerAttention, E2FormerConv, E2FormerPotential
from e2former_pyg.functional import chunks
from e2former_pyg.graph import radius_graph


def atoms():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 9, (12,), generator=generator), torch.randn(12, 3, generator=generator)


@pytest.mark.parametrize("budget", [2**22, 500])
@pytest.mark.parametrize("inside", [True, False])
def test_potential_trains(monkeypatch, budget, inside):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    torch.manual_seed(0)
    z, pos = atoms()
    model = E2FormerPotential(hidden_channels=16, num_layers=2, heads=2, cutoff=3.0, stress=True)
    expected = model(z, pos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(z, pos)
        loss = out.forces.square().sum() + out.energy.sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert out.energy.dtype == torch.float64
    assert out.forces.dtype == torch.float32
    assert float((out.forces - expected.forces).norm() / expected.forces.norm()) < 0.1
    assert not torch.equal(out.forces, expected.forces)


@pytest.mark.parametrize("layer", [E2FormerConv, E2FormerAttention])
def test_layers_take_either_side_of_the_region(layer):
    torch.manual_seed(0)
    z, pos = atoms()
    pos.requires_grad_()
    edge_index = radius_graph(pos.detach(), 3.0)[0]
    module = layer(8, 8, 1, cutoff=3.0)
    x = torch.randn(12, 4, 8)
    expected = module(x, pos, edge_index, z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x, pos, edge_index, z)
    (grad,) = torch.autograd.grad(out.float().square().sum(), pos, create_graph=True)
    grad.square().sum().backward()
    assert float((out - expected).norm() / expected.norm()) < 0.05


def test_radial_functions_of_a_half_precision_layer_are_continuous():
    torch.manual_seed(0)
    layer = E2FormerConv(4, 4, 0, order=0, groups=1, cutoff=4.0, num_radial=8).bfloat16()
    splines = layer.radial(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    polynomials = splines.cell_polynomials(torch.float32)[0, 0]
    ends, starts = polynomials.sum(1), polynomials[:, 0]
    torch.testing.assert_close(ends[:-1], starts[1:], rtol=1e-5, atol=1e-6)
