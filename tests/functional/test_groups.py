"""Groups of targets that share their sources: what they are, and that they change nothing."""

import pytest
import torch

from e2former_pyg.functional import chunks, coupled_sums
from e2former_pyg.functional.groups import find_groups
from e2former_pyg.functional.paths import coupling
from e2former_pyg.graph import CSRNeighborhood

# Molecules of different sizes; atom 5 is alone.
PARTS = ((0, 1, 2), (3, 4), (5,), (6, 7, 8))


def all_pairs(parts=PARTS, seed=0):
    """Edges between all atoms of a part, in any order."""
    pairs = [(j, i) for part in parts for i in part for j in part if i != j]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(pairs).t()[:, order]


def found(edge_index, size):
    return find_groups(CSRNeighborhood.from_edge_index(edge_index, size))


def test_groups_hold_every_edge_and_target_once():
    edge_index = all_pairs()
    groups = found(edge_index, (9, 9))
    assert groups.mask.shape == (3, 3, 3)  # the lone atom shares a group with a small molecule
    assert groups.target[groups.real].tolist() == list(range(9))
    group, place, slot = groups.mask.nonzero().unbind(1)
    edge = groups.edge[groups.mask]
    assert edge.sort().values.tolist() == list(range(edge_index.size(1)))
    assert torch.equal(groups.target[group, place], edge_index[1, edge])
    assert torch.equal(groups.source[group, slot], edge_index[0, edge])


def test_groups_of_a_bipartite_graph():
    edge_index = torch.tensor([[0, 1, 2, 0, 1, 3, 4], [0, 0, 0, 1, 1, 2, 2]])
    groups = found(edge_index, (6, 4))
    assert groups.target.shape == (2, 2)
    assert groups.source.tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize(
    "edge_index",
    [
        torch.cat([all_pairs(), all_pairs()[:, :1]], dim=1),  # an edge twice
        torch.stack([torch.arange(9).roll(1), torch.arange(9)]),  # a ring
        torch.arange(9).expand(2, -1),  # groups of one
        torch.tensor([[0, 1, 7, 8], [8, 7, 1, 0]]),  # parts that lie within one another
    ],
)
def test_no_groups(edge_index):
    assert found(edge_index, (9, 9)) is None


def test_no_groups_with_room_for_edges():
    full = CSRNeighborhood.from_edge_index(all_pairs(), 9)
    padded = torch.cat([full.col, full.col.new_zeros(3)])
    assert find_groups(CSRNeighborhood(full.rowptr, padded, full.perm, 9)) is None


def molecules(reference, convolution):
    edge_index = all_pairs()
    case = reference.make_case(
        nodes=9,
        edges=edge_index.size(1),
        convolution=convolution,
        directional=None if convolution else 1,
        orders=(0, 1, 2),
        bias=True,
        shift=True,
        graphs=2,
    )
    return case.replace(edge_index=edge_index)


def derivatives(case):
    """The output, derivatives, and derivatives of a function of those by positions."""
    case, inputs = case.leaves()
    out = case.run()
    first = torch.autograd.grad(out.square().sum(), list(inputs.values()), create_graph=True)
    (force,) = (grad for name, grad in zip(inputs, first, strict=True) if name == "pos")
    second = torch.autograd.grad(force.square().sum(), list(inputs.values()))
    return out, *first, *second


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
@pytest.mark.parametrize("budget", [2**22, 400, 1])
@pytest.mark.parametrize("block", [2**18, 1])
def test_groups_change_nothing(reference, monkeypatch, convolution, budget, block):
    case = molecules(reference, convolution)
    assert reference.error(case.run(), reference.naive(case)) < 1e-12
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "find_groups", lambda neighborhood: None)
        expected = derivatives(case)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    monkeypatch.setattr(coupled_sums, "BLOCK_ELEMENTS", block)
    for one, other in zip(derivatives(case), expected, strict=True):
        assert reference.error(one, other) < 1e-11


def test_chunks_of_groups(monkeypatch):
    """Several groups fit, or one, or none: then targets have slots of their own."""
    sizes = chunks.Sizes(slot=1)
    for budget, shapes in (
        (27, [(3, 3, 3)]),
        (18, [(2, 3, 3), (1, 3, 3)]),
        (8, [(4, 1, 2), (4, 1, 2)]),
    ):
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
        neighborhood = CSRNeighborhood.from_edge_index(all_pairs(), 9)
        plan = chunks.plan(neighborhood, sizes)
        assert [tuple(chunk.edge.shape) for chunk in plan] == shapes
        covered = [range(9) if chunk.rows is None else chunk.rows.tolist() for chunk in plan]
        isolated = [] if budget > 8 else [5]
        assert sorted(isolated + [row for rows in covered for row in rows]) == list(range(9))


@pytest.mark.parametrize("block", [2**18, 1])
def test_coupled_sums_are_differentiable(monkeypatch, block):
    monkeypatch.setattr(coupled_sums, "BLOCK_ELEMENTS", block)
    paths = coupling(1, 1, (0, 1))
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    weights, values = random(2, 2, paths.num_moments, 2, 3), random(4, 2, paths.num_inputs, 2)
    index = torch.randint(4, (2, 1, 3), generator=generator) * 2 + torch.arange(2).view(2, 1)

    def function(weights, values):
        return coupled_sums.coupled_sum(weights, values, index, paths)

    gathered = values.flatten(0, 1)[index]
    moments = torch.einsum("ghmtk,ghkid->ghmtid", weights, gathered)
    torch.testing.assert_close(function(weights, values), paths.couple(moments))
    for inputs in ((weights, values), (weights.detach(), values), (weights, values.detach())):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
