"""The repulsion of nuclei against LAMMPS, against its formula and inside a potential."""

import copy
import math

import pytest
import torch
from ase.data import covalent_radii

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.models import ZBLRepulsion
from e2former_pyg.models.repulsion import zbl_energy

# Forces in eV/Å of LAMMPS' `pair_style zbl 9.0 10.0` (22 July 2025, units metal), which switches
# off beyond 9 Å only, on two atoms at a distance in Å.
LAMMPS = {
    (1, 1, 0.2): 270.1680161505977,
    (1, 1, 0.5): 26.135385137989832,
    (1, 1, 1.9): 0.24782266368882552,
    (1, 8, 0.2): 1945.686826603159,
    (1, 8, 1.0): 15.23348694364879,
    (6, 17, 0.5): 1494.0216259073636,
    (29, 79, 0.2): 380403.44187440595,
    (29, 79, 1.9): 31.104960706937455,
    (92, 2, 1.0): 145.76453684769493,
}


@pytest.mark.parametrize("case", LAMMPS, ids=str)
def test_forces_are_those_of_lammps(case) -> None:
    z_i, z_j = torch.tensor([case[0]]), torch.tensor([case[1]])
    length = torch.tensor([case[2]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(zbl_energy(length, z_i, z_j).sum(), length)
    # The constants have seven to eight digits.
    assert -float(slope) == pytest.approx(LAMMPS[case], rel=1e-6)


def formula(r: float, z_i: int, z_j: int, cutoff: float) -> float:
    """The energy of a pair, with the polynomial expanded and the constants of LAMMPS."""
    end = min(float(covalent_radii[z_i] + covalent_radii[z_j]), cutoff)
    if r >= end:
        return 0.0
    x = r * (z_i**0.23 + z_j**0.23) / 0.46850
    phi = (
        0.18175 * math.exp(-3.19980 * x)
        + 0.50986 * math.exp(-0.94229 * x)
        + 0.28022 * math.exp(-0.40290 * x)
        + 0.02817 * math.exp(-0.20162 * x)
    )
    t = r / end
    return 14.399645 * z_i * z_j / r * phi * (1 - 10 * t**3 + 15 * t**4 - 6 * t**5)


@pytest.mark.parametrize("cutoff", [5.0, 1.2])
@pytest.mark.parametrize("z_i, z_j", [(1, 1), (6, 8), (29, 79), (1, 92), (55, 87)])
def test_pair_energies(z_i, z_j, cutoff) -> None:
    repulsion = ZBLRepulsion(cutoff)
    z = torch.tensor([z_i, z_j])
    edges = torch.tensor([[0, 1], [1, 0]])
    graph = torch.zeros(2, dtype=torch.long)
    for r in (0.1, 0.4, 0.61, 0.8, 1.3, 2.0, 2.6, 3.4, 4.9):
        pos = torch.tensor([[0.0, 0.0, 0.0], [0.6 * r, 0.0, 0.8 * r]], dtype=torch.float64)
        energies = repulsion(z, pos, graph, edges)
        assert energies.dtype == torch.float64
        assert float(energies[0]) == pytest.approx(float(energies[1]), rel=1e-14)
        assert float(energies.sum()) == pytest.approx(
            formula(r, z_i, z_j, cutoff), rel=1e-11, abs=1e-9
        )


def test_every_element_has_a_radius() -> None:
    ones = torch.ones(118, dtype=torch.long)
    pos = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.45]], dtype=torch.float64).repeat(118, 1)
    z = torch.stack([ones.cumsum(0), ones], dim=1).flatten()
    first = torch.arange(118) * 2
    edges = torch.stack([torch.cat([first, first + 1]), torch.cat([first + 1, first])])
    energies = ZBLRepulsion(5.0)(z, pos, torch.zeros_like(z), edges).view(118, 2).sum(1)
    assert (energies > 0).all() and energies.isfinite().all()
    for number in (1, 8, 26, 79, 96):
        assert float(energies[number - 1]) == pytest.approx(
            formula(0.45, number, 1, 5.0), rel=1e-11, abs=1e-9
        )


def test_smooth_at_its_end() -> None:
    """Energy and two derivatives go to zero there and are exactly zero beyond."""
    end = 2 * 0.76
    repulsion, z = ZBLRepulsion(5.0), torch.tensor([6, 6])
    edges, graph = torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, dtype=torch.long)

    def derivatives(r: float) -> list[float]:
        x = torch.tensor(r, dtype=torch.float64, requires_grad=True)
        pos = torch.stack([torch.zeros_like(x)] * 5 + [x]).view(2, 3)
        values = [repulsion(z, pos, graph, edges).sum()]
        for _ in range(2):
            values.append(torch.autograd.grad(values[-1], x, create_graph=True)[0])
        return [float(value.detach()) for value in values]

    inside, near = derivatives(end - 0.5), derivatives(end - 1e-5)
    assert all(abs(value) > 1.0 for value in inside)
    for power, value, size in zip((3, 2, 1), near, inside, strict=True):
        assert 0 < abs(value) < 50 * 1e-5**power * abs(size)
    assert derivatives(end + 1e-12) == derivatives(end + 1.0) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("periodic", [False, True])
def test_derivatives_to_second_order(lab, periodic) -> None:
    z, pos, cell = lab.crystal() if periodic else (*lab.molecule(), None)
    pos = 0.6 * pos  # bonds within the covalent radii
    cell = None if cell is None else 0.6 * cell
    edges, shift = radius_graph(pos, 3.5, cell=cell)
    graph, repulsion = torch.zeros_like(z), ZBLRepulsion(3.5)

    def energy(positions: torch.Tensor, strain: torch.Tensor) -> torch.Tensor:
        return repulsion(z, positions, graph, edges, shift, strain).sum()

    strain = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    leaf = pos.clone().requires_grad_()
    assert float(energy(leaf, strain).detach()) > 1.0
    assert torch.autograd.gradcheck(energy, (leaf, strain))
    assert torch.autograd.gradgradcheck(energy, (leaf, strain))


def remove(potential: E2FormerPotential) -> E2FormerPotential:
    bare = copy.deepcopy(potential)
    bare.repulsion = None
    return bare


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_a_potential(lab, dtype) -> None:
    """It adds its energy, forces and stress, also in a batch of molecules and crystals."""
    potential = lab.make("potential", stress=True, repulsion=True, dtype=dtype)
    z, pos, cell = lab.crystal(dtype=dtype)
    z_open, pos_open = lab.molecule(dtype=dtype)
    pos, cell, pos_open = 0.6 * pos, 0.6 * cell, 0.6 * pos_open
    batch = torch.tensor([0] * len(z) + [1] * len(z_open))
    inputs = {
        "pos": torch.cat([pos, pos_open]),
        "batch": batch,
        "cell": torch.stack([cell, torch.zeros_like(cell)]),
        "pbc": torch.tensor([[True] * 3, [False] * 3]),
    }
    out = potential(torch.cat([z, z_open]), **inputs)
    without = remove(potential)(torch.cat([z, z_open]), **inputs)
    added = {key: getattr(out, key) - getattr(without, key) for key in out._fields}

    # The sum over pairs of images, by hand.
    expected = torch.zeros(2, dtype=torch.float64)
    for graph, (numbers, points, lattice) in enumerate(
        [(z, pos.double(), cell.double()), (z_open, pos_open.double(), None)]
    ):
        images = torch.zeros(1, 3, dtype=torch.float64)
        if lattice is not None:
            grid = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3).double()
            images = grid @ lattice
        for i, z_i in enumerate(numbers.tolist()):
            for j, z_j in enumerate(numbers.tolist()):
                for r in (points[i] - points[j] - images).norm(dim=1).tolist():
                    if r > 1e-9:
                        expected[graph] += 0.5 * formula(r, z_i, z_j, 3.5)
    assert (expected > 1.0).all()
    torch.testing.assert_close(added["energy"].detach(), expected, rtol=1e-5, atol=0)
    assert added["forces"].abs().max() > 1.0 and added["stress"][0].abs().max() > 1e-2
    assert not added["stress"][1].any()


def test_forces_and_stress_are_gradients(lab) -> None:
    potential = lab.make("potential", stress=True, repulsion=True)
    z, pos, cell = lab.crystal()
    pos, cell = 0.7 * pos, 0.7 * cell
    out, step = potential(z, pos, cell=cell), 1e-4
    moved = pos.clone()
    moved[1, 2] += step
    back = pos.clone()
    back[1, 2] -= step
    energy = [float(potential(z, p, cell=cell).energy.detach()) for p in (moved, back)]
    assert -(energy[0] - energy[1]) / (2 * step) == pytest.approx(float(out.forces[1, 2]), rel=1e-5)
    energy = []
    for sign in (1, -1):
        strain = torch.eye(3, dtype=pos.dtype)
        strain[0, 1] += sign * step / 2
        strain[1, 0] += sign * step / 2
        energy.append(float(potential(z, pos @ strain, cell=cell @ strain).energy.detach()))
    slope = (energy[0] - energy[1]) / (2 * step) / float(torch.linalg.det(cell))
    assert slope == pytest.approx(float(out.stress[0, 0, 1]), rel=1e-5)


def test_off_by_default_and_saved(lab, tmp_path) -> None:
    assert lab.make("potential").repulsion is None
    potential = lab.make("potential", repulsion=True)
    assert set(potential.state_dict()) == set(lab.make("potential").state_dict())
    path = tmp_path / "model.safetensors"
    potential.save(path)
    z, pos = lab.molecule()
    loaded = E2FormerPotential.load(path)
    assert isinstance(loaded.repulsion, ZBLRepulsion)
    assert torch.equal(loaded(z, 0.6 * pos).energy, potential(z, 0.6 * pos).energy)


def test_not_with_direct_forces(lab) -> None:
    with pytest.raises(ValueError, match="`repulsion` must be False with forces='direct'"):
        lab.make("potential", forces="direct", repulsion=True)


def test_parameters_can_be_trained_on_forces(lab) -> None:
    """Second derivatives reach the parameters, as without repulsion; it has none of its own."""
    z, pos = lab.molecule()
    gradients = []
    for repulsion in (True, False):
        potential = lab.make("potential", repulsion=repulsion).train()
        out = potential(z, pos)
        parameters = list(potential.parameters())
        loss = (out.forces * torch.arange(24.0).view(8, 3)).sum()
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for first, second in zip(*gradients, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
