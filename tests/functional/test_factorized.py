"""The factorized algorithm gives what the direct one gives."""

import itertools

import pytest
import torch

from e2former_pyg.functional import chunks, coupling
from e2former_pyg.functional.factorized import factorized_sums
from e2former_pyg.functional.torch_backend import Spec
from e2former_pyg.graph import CSRNeighborhood, radius_graph

KINDS = pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])


def derivatives(case, algorithm):
    """Values, first derivatives by all inputs, and the derivatives of a function of these."""
    case, inputs = case.leaves()
    out = case.run(algorithm=algorithm)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.dtype)
    weight.requires_grad_()
    first = torch.autograd.grad(out, list(inputs.values()), weight, create_graph=True)
    loss = sum((grad * (grad + 0.3)).sum() for grad in first)
    second = torch.autograd.grad(loss, [weight, *inputs.values()], materialize_grads=True)
    return {
        "value": out,
        **{f"d {name}": grad for name, grad in zip(inputs, first, strict=True)},
        **{f"dd {name}": grad for name, grad in zip(["weight", *inputs], second, strict=True)},
    }


def assert_same(reference, case, exact=None, tolerance=1e-10):
    expected = derivatives(case if exact is None else exact, "direct")
    found = derivatives(case, "factorized")
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert found[name].dtype == case.v.dtype
        if want.any():
            assert reference.error(found[name], want) < tolerance, name
        else:
            assert not found[name].any(), name


# Algebra #####################################################################


@KINDS
@pytest.mark.parametrize("lmax", [0, 2, 4, 6])
@pytest.mark.parametrize("order", range(7))
def test_single_orders(reference, convolution, lmax, order):
    output = max(lmax, order - lmax)
    case = reference.make_case(
        orders=(order,), lmax_in=lmax, lmax=output, channels=2, convolution=convolution
    )
    assert_same(reference, case)


SETS = [((0, 1), 2), ((0, 2, 5), 3), ((1, 4), 2), (tuple(range(7)), 6)]


@KINDS
@pytest.mark.parametrize("orders, lmax", SETS, ids=str)
def test_sets_of_orders(reference, convolution, orders, lmax):
    assert_same(
        reference, reference.make_case(orders=orders, lmax_in=lmax, convolution=convolution)
    )


@KINDS
@pytest.mark.parametrize("lmax_in, lmax", [(0, 2), (1, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("parity", ["so3", "o3"])
def test_degrees_and_parity(reference, convolution, lmax_in, lmax, parity):
    case = reference.make_case(
        orders=(0, 1, 2), lmax_in=lmax_in, lmax=lmax, parity=parity, convolution=convolution
    )
    assert_same(reference, case)


# Graphs ######################################################################

OPTIONS = {
    "edge_bias": {"bias": True},
    "edge_shift": {"shift": True},
    "one_strain": {"graphs": 1},
    "strains": {"graphs": 3},
    "bipartite": {"sources": 11},
    "bipartite_fewer_sources": {"sources": 3},
    "all": {"sources": 9, "bias": True, "shift": True, "graphs": 2, "types": 3},
}


@KINDS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("budget", [None, 1, 2000])
def test_options(reference, monkeypatch, convolution, options, budget):
    """Edges in any order, one of zero length, some beyond the cutoff, an isolated target."""
    if budget is not None:
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    case = reference.make_case(orders=(0, 1, 3), convolution=convolution, **options)
    length = reference.edge_vectors(case).norm(dim=-1)
    # A self-loop has zero length; under offsets none has.
    assert bool((length == 0).any()) != bool(options.get("shift"))
    assert (length > case.cutoff).any()
    assert_same(reference, case)


def test_directional_and_dropout(reference):
    case = reference.make_case(orders=(0, 2), directional=2)
    assert_same(reference, case)
    options = {"dropout": 0.4, "seed": torch.tensor(3)}
    found = case.run(algorithm="factorized", **options)
    assert reference.error(found, case.run(**options)) < 1e-12
    assert reference.error(found, case.run()) > 0.1


@KINDS
@pytest.mark.parametrize("nodes", [0, 5])
def test_without_edges(reference, convolution, nodes):
    case = reference.make_case(convolution=convolution, sources=6, orders=(0, 2))
    case = case.replace(
        edge_index=case.edge_index[:, :0],
        pos=(case.pos[0], case.pos[1][:nodes]),
        target_type=case.target_type[:nodes],
        q=None if convolution else case.q[:nodes],
    )
    out = case.run(algorithm="factorized")
    assert out.shape == (nodes, coupling(2, 2, (0, 2)).num_rows, 4)
    assert_same(reference, case)


@KINDS
def test_self_loops_see_order_zero_alone(reference, convolution):
    """Also next to neighbours, whose derivatives they share."""
    case = reference.make_case(convolution=convolution, orders=(0, 1, 2), edges=12)
    loops = torch.arange(7).expand(2, -1)
    case = case.replace(edge_index=torch.cat([case.edge_index, loops], dim=1))
    assert_same(reference, case)
    alone = case.replace(edge_index=loops)
    out = alone.run(algorithm="factorized")
    rows = torch.zeros(out.size(1), dtype=torch.bool)
    paths = coupling(2, 2, (0, 1, 2))
    for path in paths.paths:
        rows[list(paths.row_of(path))] = path.order == 0
    assert out[:, rows].any()
    assert not out[:, ~rows].any()


@KINDS
def test_edges_along_axes(reference, convolution):
    """Where frames have their charts and poles; one atom at the origin of all positions."""
    pos = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]).double()
    case = reference.make_case(convolution=convolution, orders=(1, 2))
    edge_index = torch.tensor([pair for pair in itertools.permutations(range(7), 2)]).t()
    assert_same(reference, case.replace(pos=pos, edge_index=edge_index))


@KINDS
def test_periodic(reference, convolution):
    """Few atoms with many images; offsets without a gradient, so that images are shared."""
    case = reference.make_case(convolution=convolution, orders=(0, 1, 2), graphs=1)
    cell = torch.tensor([[3.1, 0.2, 0.0], [0.0, 2.9, 0.4], [0.3, 0.0, 3.3]]).double()
    edge_index, edge_shift = radius_graph(case.pos, 3.0, cell=cell)
    assert edge_index.size(1) > 150
    case = case.replace(edge_index=edge_index)
    first = case.replace(strain=0.1 * case.strain)
    results = []
    for algorithm in ("direct", "factorized"):
        leaves, inputs = first.leaves()
        out = leaves.replace(edge_shift=edge_shift).run(algorithm=algorithm)
        wanted = [inputs[name] for name in ("pos", "v", "strain")]
        grads = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), wanted)
        results.append([out, *grads, *second])
    for want, found in zip(*results, strict=True):
        assert reference.error(found, want) < 1e-10


def sums_of(case, neighborhood, **options):
    paths = coupling(case.lmax_in, case.lmax, case.orders, case.parity)
    spec = Spec(paths, case.groups, case.cutoff, 3, 0, torch.float64)
    arguments = {"edge_shift": None, "strain": None, "batch": None} | options
    return factorized_sums(spec, neighborhood, case.v, case.pair, **arguments)


def test_a_row_for_each_image_and_no_more(reference):
    case = reference.make_case(convolution=True)
    cell = 3.0 * torch.eye(3, dtype=torch.float64)
    edge_index, edge_shift = radius_graph(case.pos, 3.0, cell=cell)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(0))
    edge_index, edge_shift = edge_index[:, order], edge_shift[order]
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, case.size)
    sums = sums_of(case, neighborhood, edge_shift=edge_shift)
    images = {(j, *s) for j, s in zip(edge_index[0].tolist(), edge_shift.tolist(), strict=True)}
    assert sums.neighborhood.num_sources == len(images) < 0.7 * edge_index.size(1)
    assert {sums.carried[name][1].size(0) for name in ("products_0", "products_1")} == {len(images)}

    open_graph = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
    assert sums_of(case, open_graph).neighborhood is open_graph
    # A strain of its own for each graph, of which a source may see several here.
    strain, batch = torch.zeros(3, 3, 3, dtype=torch.float64), torch.arange(7) % 3
    pairs = {(j, i % 3) for j, i in case.edge_index.t().tolist()}
    sums = sums_of(case, open_graph, strain=strain, batch=batch)
    assert sums.neighborhood.num_sources == len(pairs)


# Precision ###################################################################


def in_a_large_box(reference, convolution, order):
    """The same molecule in each corner of a box of 200 Å and in its middle."""
    case = reference.make_case(
        orders=(order,), convolution=convolution, lmax_in=3 if order > 3 else 2, groups=4
    )
    places = 96.0 * torch.tensor([*itertools.product((-1, 1), repeat=3), (0, 0, 0)])
    generator = torch.Generator().manual_seed(1)
    pos = torch.tensor([*itertools.product((0.0, 1.3, 2.6), repeat=3)])[:14]
    pos = (pos + 0.3 * torch.rand(14, 3, generator=generator)).unsqueeze(0) + places.unsqueeze(1)
    edge_index, _ = radius_graph(pos.flatten(0, 1), 3.0)
    case = case.replace(edge_index=edge_index, pos=pos.flatten(0, 1).double())
    index = torch.arange(case.pos.size(0)) % 7

    def take(value):
        return None if value is None else value[index]

    return case.replace(
        v=case.v[index],
        q=take(case.q),
        k=take(case.k),
        target_type=case.target_type[index],
        source_type=case.source_type[index],
    )


@KINDS
@pytest.mark.parametrize(
    "order, tolerance", [(1, 5e-6), (2, 5e-6), (3, 1e-5), (4, 1e-5), (5, 1e-4), (6, 1e-4)]
)
def test_float32_in_a_large_box(reference, convolution, order, tolerance):
    case = in_a_large_box(reference, convolution, order).map(torch.Tensor.float)
    exact = case.map(torch.Tensor.double)
    assert_same(reference, case, exact, tolerance)


@KINDS
@pytest.mark.parametrize("order", [4, 6])
def test_float64_in_a_large_box(reference, convolution, order):
    """A single origin would leave 1e-8 and 1e-2."""
    assert_same(reference, in_a_large_box(reference, convolution, order))


@KINDS
def test_float32_under_offsets_and_in_bfloat16(reference, convolution):
    case = reference.make_case(convolution=convolution, orders=(0, 1, 2), shift=True, bias=True)
    single = case.map(torch.Tensor.float)
    exact = single.map(torch.Tensor.double)
    assert_same(reference, single, exact, 5e-6)
    half = single.replace(v=single.v.bfloat16())
    found = half.run(algorithm="factorized")
    assert found.dtype == torch.bfloat16
    assert reference.error(found, exact.run()) < 1e-2
    moved = single.replace(pos=single.pos.double() + 1e4)
    assert reference.error(moved.run(algorithm="factorized"), exact.run()) < 5e-6


# Memory ######################################################################


@KINDS
@pytest.mark.parametrize("nodes, degree", [(64, 128), (128, 64)])
def test_no_tensor_has_edges_times_features(reference, monkeypatch, convolution, nodes, degree):
    budget, channels = 2**16, 16
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    case = reference.make_case(nodes=nodes, edges=8, channels=channels, convolution=convolution)
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(nodes).repeat_interleave(degree)
    source = torch.randint(nodes, (nodes * degree,), generator=generator)
    case = case.replace(edge_index=torch.stack([source, target]), pos=0.5 * case.pos)
    case, inputs = case.leaves()
    with reference.Largest() as largest:
        out = case.run(algorithm="factorized")
        (force,) = torch.autograd.grad(out.square().sum(), inputs["pos"], create_graph=True)
        torch.autograd.grad(force.square().sum(), list(inputs.values()))
    products = nodes * 20 * channels  # the rows [v ⊗ R^1] of all sources
    assert nodes * degree * channels > 1.9 * max(budget, products)
    assert largest.elements <= max(budget, out.numel(), products)


# Arguments ###################################################################


@KINDS
def test_errors(reference, convolution):
    case = reference.make_case(convolution=convolution)
    with pytest.raises(ValueError, match="`algorithm` must be 'direct' or 'factorized', got 'fast"):
        case.run(algorithm="fast")
    with pytest.raises(RuntimeError, match=r"'triton' is not available.*factorized"):
        case.run(algorithm="factorized", backend="triton")
