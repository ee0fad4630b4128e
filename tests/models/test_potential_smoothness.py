"""Energy, forces and force derivatives as an atom crosses the cutoff."""

import pytest
import torch

STEP = 1e-6


def derivatives(model, z, pos):
    """Atomic energies, forces and Hessian."""
    pos = pos.clone().requires_grad_()
    out = model(z, pos)
    rows = [
        torch.autograd.grad(force, pos, retain_graph=True)[0].flatten()
        for force in out.forces.flatten()
    ]
    return out.atomic_energies.detach(), out.forces.detach(), torch.stack(rows)


def approach(num_atoms, lab):
    """A function from a distance to the molecule whose last atom has that distance to the one
    at the origin, and a greater one to all others."""
    z, pos = lab.molecule(num_atoms)
    direction = torch.tensor([0.0, 0.0, -1.0], dtype=pos.dtype)
    if num_atoms > 1:
        pos = pos - pos[pos[:, 2].argmin()]  # the one at the origin is the lowest
    return torch.cat([z, torch.tensor([8])]), lambda r: torch.cat([pos, r * direction[None]])


@pytest.mark.parametrize("lmax", [1, 2])
@pytest.mark.parametrize("num_atoms", [1, 6], ids=["last", "one-of-many"])
def test_smooth_at_the_cutoff(lab, num_atoms, lmax):
    model = lab.make("potential", num_layers=1, lmax=lmax)
    z, at = approach(num_atoms, lab)
    near = derivatives(model, z, at(model.cutoff - 1.0))
    inside = derivatives(model, z, at(model.cutoff - STEP))
    on = derivatives(model, z, at(model.cutoff))
    outside = derivatives(model, z, at(model.cutoff + STEP))
    far = derivatives(model, z, at(model.cutoff + 1.0))
    for name, *values in zip(
        ("energy", "forces", "Hessian"), near, inside, on, outside, far, strict=True
    ):
        close, before, there, after, apart = values
        scale = float((close - apart).norm())  # what the neighbour does, at all
        assert scale > 1e-4, name
        # A jump would not shrink with the step; a continuous change is some slope times it.
        assert float((before - after).norm()) < 100 * STEP * scale, name
        assert float((there - after).norm()) < 100 * STEP * scale, name


def test_crossing_is_the_limit_of_no_edge(lab):
    """Beyond the cutoff, an edge in the list gives what no edge gives, to the last bit."""
    model = lab.make("potential", num_layers=1)
    z, at = approach(1, lab)
    pos = at(model.cutoff + 0.1)
    given = model(z, pos, edge_index=torch.tensor([[0, 1], [1, 0]]))
    without = model(z, pos, edge_index=torch.empty(2, 0, dtype=torch.long))
    assert torch.equal(given.atomic_energies, without.atomic_energies)
    assert not given.forces.any() and not without.forces.any()
