"""Both operations against their definition, in float64."""

import pytest
import torch

from e2former_pyg.functional import chunks, coupling
from e2former_pyg.graph import CSRNeighborhood

ORDERS = [(0,), (1,), (0, 1), (0, 2), (0, 1, 2), (3,)]
KINDS = pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])


@KINDS
@pytest.mark.parametrize("orders", ORDERS, ids=str)
@pytest.mark.parametrize("lmax_in", [0, 1, 2, 3])
def test_orders_and_degrees(reference, convolution, orders, lmax_in):
    lmax = max(lmax_in, max(orders) - lmax_in)
    case = reference.make_case(orders=orders, lmax_in=lmax_in, lmax=lmax, convolution=convolution)
    assert reference.error(case.run(), reference.naive(case)) < 1e-12


@KINDS
@pytest.mark.parametrize("lmax_in, lmax", [(0, 2), (1, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("parity", ["so3", "o3"])
def test_other_output_degree(reference, convolution, lmax_in, lmax, parity):
    case = reference.make_case(
        orders=(0, 1, 2), lmax_in=lmax_in, lmax=lmax, parity=parity, convolution=convolution
    )
    out = case.run()
    assert out.shape == (7, coupling(lmax_in, lmax, (0, 1, 2), parity).num_rows, 4)
    assert reference.error(out, reference.naive(case)) < 1e-12


@KINDS
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_channels(reference, convolution, groups):
    case = reference.make_case(groups=groups, orders=(0, 1, 2), convolution=convolution)
    assert reference.error(case.run(), reference.naive(case)) < 1e-12


OPTIONS = {
    "edge_bias": {"bias": True},
    "edge_shift": {"shift": True},
    "one_strain": {"graphs": 1},
    "strains": {"graphs": 3},
    "bipartite": {"sources": 11},
    "bipartite_fewer_sources": {"sources": 3},
    "one_type": {"types": 1},
    "all": {"sources": 9, "bias": True, "shift": True, "graphs": 2, "types": 3},
}


@KINDS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("budget", [None, 1, 200])
def test_options(reference, monkeypatch, convolution, options, budget):
    if budget is not None:
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    case = reference.make_case(convolution=convolution, **options)
    assert reference.error(case.run(), reference.naive(case)) < 1e-12


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_directional(reference, degree):
    case = reference.make_case(directional=degree, orders=(0, 1))
    assert reference.error(case.run(), reference.naive(case)) < 1e-12
    without = case.replace(u=None)
    assert (reference.error(case.run(), without.run()) < 1e-12) == (degree == 0)


@KINDS
def test_highest_degree(reference, convolution):
    case = reference.make_case(
        orders=(8,), lmax_in=8, nodes=4, edges=8, channels=2, convolution=convolution
    )
    assert reference.error(case.run(), reference.naive(case)) < 1e-12


def test_blocked_coupling_is_the_dense_one(reference):
    paths = coupling(4, 4, (0, 1, 2, 3, 4))
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(
        3, 2, paths.num_moments, paths.num_inputs, 5, dtype=torch.float64, generator=generator
    )
    dense = torch.einsum("nhmid,pmi->nphd", moments, paths.dense()).flatten(2)
    assert reference.error(paths.couple(moments.unsqueeze(3)), dense) < 1e-14
    case = reference.make_case(orders=(0, 1, 2, 3, 4), lmax_in=4, nodes=4, edges=8, channels=2)
    assert reference.error(case.run(), reference.naive(case)) < 1e-12


@KINDS
def test_an_isolated_target_is_exactly_zero(reference, convolution):
    case = reference.make_case(convolution=convolution)
    inside = reference.edge_vectors(case).norm(dim=-1) < case.cutoff
    reached = torch.zeros(7, dtype=torch.bool)
    reached[case.edge_index[1, inside]] = True
    out = case.run().flatten(1)
    assert not reached[-1]
    assert torch.equal(out.abs().amax(dim=1) > 0, reached)


@KINDS
@pytest.mark.parametrize("nodes", [0, 1, 5])
def test_without_edges(reference, convolution, nodes):
    case = reference.make_case(convolution=convolution, sources=6)
    case = case.replace(
        edge_index=case.edge_index[:, :0],
        pos=(case.pos[0], case.pos[1][:nodes]),
        target_type=case.target_type[:nodes],
        q=None if convolution else case.q[:nodes],
    )
    case, inputs = case.leaves()
    out = case.run()
    assert out.shape == (nodes, coupling(2, 2, (0, 1)).num_rows, 4)
    assert not out.any()
    # Forces of a lone atom are zero, not an error; so is their gradient.
    grads = torch.autograd.grad(
        out.sum(), list(inputs.values()), create_graph=True, materialize_grads=True
    )
    assert not any(grad.any() for grad in grads)


@KINDS
def test_without_any_node(reference, convolution):
    case = reference.make_case(convolution=convolution)
    empty = torch.empty(0, 3, dtype=torch.float64)
    case = case.replace(edge_index=case.edge_index[:, :0], pos=empty, v=case.v[:0])
    case = case.replace(target_type=case.target_type[:0], source_type=case.source_type[:0])
    if not convolution:
        case = case.replace(q=case.q[:0], k=case.k[:0])
    assert case.run().shape == (0, coupling(2, 2, (0, 1)).num_rows, 4)


@KINDS
def test_one_atom_that_is_its_own_neighbour(reference, convolution):
    case = reference.make_case(convolution=convolution)
    case = case.replace(
        edge_index=torch.zeros(2, 3, dtype=torch.long),
        pos=case.pos[:1],
        v=case.v[:1],
        target_type=case.target_type[:1],
        source_type=case.source_type[:1],
        # Images up, on a diagonal, and itself.
        edge_shift=torch.tensor([[0.0, 2.0, 0.0], [1.0, -1.0, 0.5], [0.0, 0.0, 0.0]]).double(),
    )
    if not convolution:
        case = case.replace(q=case.q[:1], k=case.k[:1])
    out = case.run()
    assert out.abs().max() > 0.01
    assert reference.error(out, reference.naive(case)) < 1e-12


@KINDS
def test_edges_beyond_the_cutoff_contribute_nothing(reference, convolution):
    case = reference.make_case(convolution=convolution, edges=40, bias=True, sources=9)
    length = reference.edge_vectors(case).norm(dim=-1)
    keep = length < case.cutoff
    assert 5 < int(keep.sum()) < 35
    pruned = case.replace(edge_index=case.edge_index[:, keep], edge_bias=case.edge_bias[keep])
    assert reference.error(case.run(), pruned.run()) < 1e-14

    case, inputs = case.leaves()
    (grad,) = torch.autograd.grad(case.run().square().sum(), [inputs["edge_bias"]])
    assert not grad[~keep].any()
    assert (grad[keep].norm(dim=1) > 0).all()


@KINDS
def test_a_source_beyond_the_cutoff_gets_zero_gradient(reference, convolution):
    case = reference.make_case(convolution=convolution, sources=9)
    # The last source moves far away from all targets, or exactly to the cutoff of the only one.
    pos = case.pos[0].clone()
    for place in (torch.tensor([50.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])):
        pos[-1] = case.pos[1][0] + place
        index = torch.cat([case.edge_index, torch.tensor([[8], [0]])], dim=1)
        inside = (index[0] != 8) | (torch.arange(25) == 24)
        moved, inputs = case.replace(pos=(pos, case.pos[1]), edge_index=index[:, inside]).leaves()
        vectors = reference.edge_vectors(moved)[-1]
        if place[0] == 3:
            moved = moved.replace(cutoff=float(vectors.detach().norm()))
        out = moved.run()
        names = ["v", "pos[0]"] if convolution else ["v", "k", "pos[0]"]
        first = torch.autograd.grad(
            out.square().sum(), [inputs[name] for name in names], create_graph=True
        )
        assert not any(grad[-1].any() for grad in first)
        second = torch.autograd.grad(
            sum(grad.square().sum() for grad in first), [inputs[name] for name in names]
        )
        assert not any(grad[-1].any() for grad in second)


@KINDS
def test_order_of_edges_does_not_matter(reference, convolution):
    case = reference.make_case(convolution=convolution, bias=True, shift=True)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    permuted = case.replace(
        edge_index=case.edge_index[:, order],
        edge_bias=case.edge_bias[order],
        edge_shift=case.edge_shift[order],
    )
    assert reference.error(permuted.run(), case.run()) < 1e-14


@KINDS
def test_non_contiguous_inputs(reference, convolution):
    case = reference.make_case(convolution=convolution, bias=True, shift=True, graphs=2)

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        wide = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype)
        wide[..., 1] = tensor
        return wide[..., 1]

    strided = case.map(spread)
    assert not strided.v.is_contiguous()
    assert torch.equal(strided.v, case.v)
    assert reference.error(strided.run(), case.run()) < 1e-14


@KINDS
def test_a_neighborhood_can_be_shared(reference, convolution):
    case = reference.make_case(convolution=convolution)
    neighborhood = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
    small = case.replace(v=case.v[:, :1, :2], lmax=1)
    assert torch.equal(case.run(neighborhood), case.run())
    assert torch.equal(small.run(neighborhood), small.run())


def test_inputs_are_not_changed(reference):
    case = reference.make_case(bias=True, shift=True, graphs=2, directional=1)
    copy = case.map(torch.clone)
    case.run()
    for name in reference.TENSORS:
        assert torch.equal(getattr(case, name), getattr(copy, name))
        assert not getattr(case, name).requires_grad
