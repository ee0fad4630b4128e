"""Rotations, reflections, translations and permutations of the models."""

import pytest
import torch

from e2former_pyg.graph import radius_graph

FLOAT32 = 1e-5
PARITIES = pytest.mark.parametrize("parity", ["so3", "o3"])
OUT = "2x0e + 1o + 2e + 0e + 2x1o"


@PARITIES
@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_features_rotate(lab, wigner, lmax, parity):
    model = lab.make("backbone", lmax=lmax, order=range(lmax + 1), parity=parity)
    z, pos = lab.molecule()
    for seed in range(2):
        rotation = lab.rotation(seed)
        expected = wigner(lab.natural(lmax), rotation) @ model(z, pos)
        found = model(z, pos @ rotation.t())
        for degree in range(lmax + 1):
            rows = slice(degree**2, (degree + 1) ** 2)
            assert lab.relative(found[:, rows], expected[:, rows]) < 1e-10


@PARITIES
@pytest.mark.parametrize("forces", ["conservative", "direct"])
def test_potential_rotates(lab, parity, forces):
    model = lab.make("potential", parity=parity, forces=forces, stress=True)
    z, pos, cell = lab.crystal()
    rotation = lab.rotation()
    before = model(z, pos, cell=cell)
    after = model(z, pos @ rotation.t(), cell=cell @ rotation.t())
    assert lab.relative(after.atomic_energies, before.atomic_energies) < 1e-10
    assert lab.relative(after.energy, before.energy) < 1e-10
    assert lab.relative(after.forces, before.forces @ rotation.t()) < 1e-10
    assert lab.relative(after.stress, rotation @ before.stress @ rotation.t()) < 1e-10


@pytest.mark.parametrize("reduce", ["sum", "mean", None])
@PARITIES
def test_properties_rotate(lab, wigner, parity, reduce):
    model = lab.make("property", out=OUT, reduce=reduce, parity=parity)
    z, pos = lab.molecule()
    rotation = lab.rotation()
    expected = model(z, pos) @ wigner(OUT, rotation).t()
    assert lab.relative(model(z, pos @ rotation.t()), expected) < 1e-10


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_o3_reflects(lab, wigner, axis):
    """Inversion, and the three mirrors that keep some atoms where they are."""
    mirror = -torch.eye(3).double() if axis is None else torch.eye(3).double()
    if axis is not None:
        mirror[axis, axis] = -1
    z, pos = lab.molecule()
    backbone = lab.make("backbone", parity="o3")
    expected = wigner(lab.natural(2), mirror) @ backbone(z, pos)
    assert lab.relative(backbone(z, pos @ mirror), expected) < 1e-10

    potential = lab.make("potential", parity="o3")
    before, after = potential(z, pos), potential(z, pos @ mirror)
    assert lab.relative(after.atomic_energies, before.atomic_energies) < 1e-10
    assert lab.relative(after.forces, before.forces @ mirror) < 1e-10

    tensors = lab.make("property", out=OUT, parity="o3")
    expected = tensors(z, pos) @ wigner(OUT, mirror).t()
    assert lab.relative(tensors(z, pos @ mirror), expected) < 1e-10


def test_so3_tells_mirror_images_apart(lab):
    """The molecule is chiral; this also shows that the test of `parity="o3"` could fail."""
    z, pos = lab.molecule()
    model = lab.make("potential", parity="so3")
    assert lab.relative(model(z, -pos).atomic_energies, model(z, pos).atomic_energies) > 1e-6


@pytest.mark.parametrize("periodic", [False, True])
def test_translation(lab, periodic):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(), None)
    shift = 1e4 * lab.rotation()[0]
    before, after = model(z, pos, cell=cell), model(z, pos + shift, cell=cell)
    assert lab.relative(after.energy, before.energy) < 1e-9
    assert lab.relative(after.forces, before.forces) < 1e-9
    if periodic:
        assert lab.relative(after.stress, before.stress) < 1e-9


@pytest.mark.parametrize("periodic", [False, True])
def test_permutation_of_atoms(lab, periodic):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(10), None)
    perm = torch.randperm(z.numel(), generator=torch.Generator().manual_seed(1))
    before, after = model(z, pos, cell=cell), model(z[perm], pos[perm], cell=cell)
    assert lab.relative(after.atomic_energies, before.atomic_energies[perm]) < 1e-12
    assert lab.relative(after.energy, before.energy) < 1e-12
    assert lab.relative(after.forces, before.forces[perm]) < 1e-12
    if periodic:
        assert lab.relative(after.stress, before.stress) < 1e-12


def test_permutation_of_edges(lab):
    model = lab.make("potential", stress=True)
    z, pos, cell = lab.crystal()
    edge_index, edge_shift = radius_graph(pos, model.cutoff, cell=cell)
    perm = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(1))
    before = model(z, pos, edge_index=edge_index, edge_shift=edge_shift, cell=cell)
    after = model(z, pos, edge_index=edge_index[:, perm], edge_shift=edge_shift[perm], cell=cell)
    assert lab.relative(after.energy, before.energy) < 1e-12
    assert lab.relative(after.forces, before.forces) < 1e-12
    assert lab.relative(after.stress, before.stress) < 1e-12


@PARITIES
def test_float32_rotates(lab, wigner, parity):
    z, pos = lab.molecule(10)
    rotation = lab.rotation(improper=parity == "o3")
    turned = (pos @ rotation.t()).float()
    pos = pos.float()
    backbone = lab.make("backbone", dtype=torch.float32, parity=parity)
    expected = wigner(lab.natural(2), rotation) @ backbone(z, pos).double()
    assert lab.relative(backbone(z, turned), expected) < FLOAT32

    potential = lab.make("potential", dtype=torch.float32, parity=parity)
    before, after = potential(z, pos), potential(z, turned)
    assert lab.relative(after.atomic_energies, before.atomic_energies) < FLOAT32
    assert lab.relative(after.forces, before.forces.double() @ rotation.t()) < FLOAT32

    tensors = lab.make("property", out=OUT, dtype=torch.float32, parity=parity)
    expected = tensors(z, pos).double() @ wigner(OUT, rotation).t()
    assert lab.relative(tensors(z, turned), expected) < FLOAT32


@pytest.mark.parametrize("kind", ["potential", "property"])
def test_float32_matches_float64(lab, kind):
    z, pos = lab.molecule(10)
    exact = lab.make(kind)
    rounded = lab.make(kind).float()
    exact.load_state_dict(rounded.state_dict())  # the same, rounded, parameters
    # Positions that float32 holds exactly, so that only the arithmetic differs.
    pos = pos.float().double()
    expected, found = exact(z, pos), rounded(z, pos.float())
    if kind == "potential":
        assert lab.relative(found.energy, expected.energy) < FLOAT32
        expected, found = expected.forces, found.forces
    assert lab.relative(found, expected) < FLOAT32
