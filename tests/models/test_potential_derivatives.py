"""Forces, stress and second derivatives against finite differences."""

import pytest
import torch

H = 1e-4


def displaced(z, pos):
    """The batch of all copies with one coordinate moved by +H, then those moved by -H."""
    steps = H * torch.eye(pos.numel(), dtype=pos.dtype).view(-1, *pos.shape)
    copies = torch.cat([pos + steps, pos - steps])
    batch = torch.arange(copies.size(0)).repeat_interleave(z.numel())
    return z.repeat(copies.size(0)), copies.view(-1, 3), batch


def central(values):
    """The derivative by each coordinate, [3N, ...]."""
    plus, minus = values.chunk(2)
    return (plus - minus) / (2 * H)


@pytest.mark.parametrize("order", [0, 1, (0, 1, 2)])
@pytest.mark.parametrize("periodic", [False, True])
def test_forces_are_the_negative_gradient(lab, periodic, order):
    model = lab.make("potential", order=order)
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(), None)
    forces = model(z, pos, cell=cell).forces
    energy = model(*displaced(z, pos), cell=cell).energy
    assert lab.relative(forces, -central(energy).view(-1, 3)) < 1e-7


@pytest.mark.parametrize("periodic", [False, True])
def test_forces_sum_to_zero(lab, periodic):
    model = lab.make("potential")
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(10), None)
    forces = model(z, pos, cell=cell).forces
    assert float(forces.sum(0).norm()) < 1e-13 * max(float(forces.norm()), 1.0)


def test_no_net_torque(lab):
    z, pos = lab.molecule(10)
    forces = lab.make("potential")(z, pos).forces
    assert float(torch.linalg.cross(pos, forces).sum(0).norm()) < 1e-13


def strained(pos, cell):
    """Positions and cells of +H and -H strains in all nine directions, and the graph."""
    steps = H * torch.eye(9, dtype=pos.dtype).view(9, 3, 3)
    maps = torch.eye(3, dtype=pos.dtype) + torch.cat([steps, -steps])
    batch = torch.arange(18).repeat_interleave(pos.size(0))
    return (pos @ maps).view(-1, 3), batch, cell @ maps


@pytest.mark.parametrize("seed", [0, 1])
def test_stress_is_the_strain_derivative(lab, seed):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal(seed)
    moved, batch, cells = strained(pos, cell)
    energy = model(z.repeat(18), moved, batch, cell=cells).energy
    virial = central(energy).view(3, 3)
    volume = torch.linalg.det(cell).abs()
    found = model(z, pos, cell=cell).stress
    assert lab.relative(found[0], 0.5 * (virial + virial.t()) / volume) < 1e-6
    assert torch.equal(found, found.transpose(1, 2))


def test_gradient_of_the_cell(lab):
    """A strain moves positions and cell alike: its derivative is made of theirs."""
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    cell.requires_grad_()
    out = model(z, pos, cell=cell)
    (grad,) = torch.autograd.grad(out.energy.sum(), cell)
    virial = cell.t() @ grad - pos.t() @ out.forces
    assert lab.relative(virial, virial.t()) < 1e-12  # the energy does not change by a rotation
    assert lab.relative(virial / torch.linalg.det(cell).abs(), out.stress[0]) < 1e-12


def test_stress_of_a_left_handed_cell(lab):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    expected = model(z, pos, cell=cell).stress
    assert lab.relative(model(z, pos, cell=cell[[1, 0, 2]]).stress, expected) < 1e-12


@pytest.mark.parametrize("periodic", [False, True])
def test_hessian(lab, periodic):
    """In eval mode, forces can be differentiated where the caller's positions are tracked."""
    model = lab.make("potential")
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(6), None)
    tracked = pos.clone().requires_grad_()
    forces = model(z, tracked, cell=cell).forces.flatten()
    rows = [torch.autograd.grad(force, tracked, retain_graph=True)[0] for force in forces]
    hessian = -torch.stack(rows).view(pos.numel(), -1)
    moved = model(*displaced(z, pos), cell=cell).forces
    expected = -central(moved.view(2 * pos.numel(), -1))
    assert lab.relative(hessian, expected) < 1e-6
    assert lab.relative(hessian, hessian.t()) < 1e-12


@pytest.mark.parametrize("periodic", [False, True])
def test_force_loss_gradients(lab, periodic):
    """Of every parameter, along one random direction each."""
    model = lab.make("potential", stress=periodic, num_layers=1).train()
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(), None)
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(pos.shape, dtype=pos.dtype, generator=generator)

    def loss():
        out = model(z, pos, cell=cell)
        value = (out.forces - target).square().sum() + 0.1 * out.energy.square().sum()
        return value if out.stress is None else value + 10 * out.stress.square().sum()

    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss(), list(named.values()))
    scale = max(float(grad.norm()) for grad in grads)
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        direction = torch.randn(parameter.shape, dtype=pos.dtype, generator=generator)
        direction /= direction.norm()
        values = []
        for step in (H, -H):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
            values.append(float(loss()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=step)
        expected = (values[0] - values[1]) / (2 * H)
        found = float((grad * direction).sum())
        assert abs(found - expected) < 1e-6 * abs(expected) + 1e-9 * scale, name


@pytest.mark.parametrize("periodic", [False, True])
def test_factorized_potential(lab, periodic):
    """Energy, forces, stress, and the gradients of a loss on them, as in the direct form."""
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(), None)
    results = []
    for algorithm in ("direct", "factorized"):
        model = lab.make("potential", order=(0, 1, 2), stress=True, algorithm=algorithm).train()
        out = model(z, pos, cell=cell)
        (out.forces.square().sum() + out.stress.square().sum()).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None and p.grad.any()]
        results.append([out.energy, out.forces, *([out.stress] if periodic else []), *grads])
    assert len(results[0]) == len(results[1]) > 20
    for expected, found in zip(*results, strict=True):
        assert lab.relative(found, expected) < 1e-10
