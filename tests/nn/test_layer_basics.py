"""Both layers as users of PyG meet them."""

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.nn import Sequential
from torch_geometric.utils import to_torch_csc_tensor, to_torch_csr_tensor

from e2former_pyg.nn import E2FormerAttention, E2FormerConv


def test_repr():
    assert str(E2FormerConv(8, 16, 2)) == "E2FormerConv(8, 16, lmax=2, groups=8)"
    assert (
        str(E2FormerConv((4, 8), 16, 1, groups=2)) == "E2FormerConv((4, 8), 16, lmax=1, groups=2)"
    )
    assert str(E2FormerAttention(8, 16, 2)) == "E2FormerAttention(8, 16, lmax=2, heads=8)"


@pytest.mark.parametrize("lmax_in, lmax", [(0, 0), (0, 2), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("root_weight", [True, False])
def test_shapes(kind, make_layer, make_graph, lmax_in, lmax, root_weight):
    layer = make_layer(
        kind, out_channels=12, lmax=lmax, lmax_in=lmax_in, order=(0, 1, 2), root_weight=root_weight
    )
    graph = make_graph(lmax=lmax_in)
    out = layer(**graph.arguments())
    assert out.shape == (8, (lmax + 1) ** 2, 12)
    assert out.dtype == torch.float64
    # The isolated node has its own features only.
    assert bool(out[-1].any()) == root_weight
    assert torch.isfinite(out).all()


def test_root_weight_is_a_linear_map_of_the_targets(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, lmax=1, lmax_in=2), make_graph()
    with_root = layer(**graph.arguments())
    root, layer.lin_root = layer.lin_root, None
    without = layer(**graph.arguments())
    torch.testing.assert_close(with_root, without + root(graph.x))


@pytest.mark.parametrize("root_weight", [False, True])
def test_residual_is_added_to_the_output(make_layer, make_graph, root_weight):
    layer = make_layer("attention", lmax=1, lmax_in=2, root_weight=root_weight)
    graph = make_graph()
    out = layer(**graph.arguments())
    residual = torch.randn_like(out)
    found, (_, weights) = layer(
        **graph.arguments(), residual=residual, return_attention_weights=True
    )
    torch.testing.assert_close(found, out + residual)
    assert torch.equal(weights, layer(**graph.arguments(), return_attention_weights=True)[1][1])
    with pytest.raises(ValueError, match=r"`residual`.*\[7, 4, 8\]"):
        layer(**graph.arguments(), residual=residual[1:])
    with pytest.raises(TypeError, match=r"`residual`.*float32"):
        layer(**graph.arguments(), residual=residual.float())


def test_scalars_need_no_row_dimension(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, lmax=2, lmax_in=0), make_graph(lmax=0)
    flat = graph.replace(x=graph.x.squeeze(1))
    assert torch.equal(layer(**flat.arguments()), layer(**graph.arguments()))


def test_order_as_an_integer(kind, make_layer, make_graph):
    single, as_set = make_layer(kind, order=1), make_layer(kind, order={1})
    graph = make_graph()
    assert single.orders == (1,)
    assert torch.equal(single(**graph.arguments()), as_set(**graph.arguments()))


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_ways_to_give_the_edges(kind, make_layer, make_graph, edge_dim):
    layer, graph = make_layer(kind, edge_dim=edge_dim), make_graph(edge_dim=edge_dim, shift=True)
    expected = layer(**graph.arguments())
    size = (8, 8)
    for edges in (
        EdgeIndex(graph.edge_index),
        EdgeIndex(graph.edge_index, sparse_size=size),
        graph.edge_index.int(),
        graph.edge_index.flip(1).flip(1),
        graph.edge_index.t().contiguous().t(),
    ):
        assert torch.equal(layer(**graph.replace(edge_index=edges).arguments()), expected)

    for order, row in (("col", 1), ("row", 0)):
        perm = graph.edge_index[row].sort(stable=True).indices
        edges = graph.edge_index[:, perm]
        ordered = graph.replace(
            edge_shift=graph.edge_shift[perm],
            edge_attr=None if edge_dim is None else graph.edge_attr[perm],
        )
        for edge_index in (
            edges,
            EdgeIndex(edges, sort_order=order),
            EdgeIndex(edges, sparse_size=size, sort_order=order),
        ):
            out = layer(**ordered.replace(edge_index=edge_index).arguments())
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make_order",
    [
        lambda: np.int64(1),
        lambda: (n for n in (1,)),
        lambda: torch.tensor([1]),
        lambda: range(1, 2),
    ],
    ids=["numpy", "generator", "tensor", "range"],
)
def test_forms_of_order(kind, make_layer, make_graph, make_order):
    layer = make_layer(kind, order=make_order())
    assert layer.orders == (1,) and type(layer.orders[0]) is int
    graph = make_graph()
    expected = make_layer(kind, order=1)(**graph.arguments())
    assert torch.equal(layer(**graph.arguments()), expected)


def test_int32_atomic_numbers(kind, make_layer, make_graph):
    graph = make_graph()
    for elements in (None, [1, 6, 8]):
        layer = make_layer(kind, elements=elements)
        found = layer(**graph.replace(z=graph.z.int()).arguments())
        assert torch.equal(found, layer(**graph.arguments()))


def test_sparse_adjacency(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    edge_index = graph.edge_index.unique(dim=1)  # sparse tensors add up multiple edges
    expected = layer(**graph.replace(edge_index=edge_index).arguments())
    adj = to_torch_csc_tensor(edge_index, size=(8, 8))
    for adj_t in (
        adj.t(),
        to_torch_csr_tensor(edge_index.flip(0), size=(8, 8)),
        adj.t().to_sparse(),
    ):
        out = layer(**graph.replace(edge_index=adj_t).arguments())
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair", [False, True], ids=["conv_alone", "both"])
def test_bipartite(kind, make_layer, make_graph, pair):
    layer = make_layer(kind, in_channels=(8, 4), root_weight=True)
    source, target = make_graph(seed=3, nodes=10), make_graph(seed=4, nodes=8, channels=4)
    edge_index = source.edge_index.clone()
    edge_index[1] %= 7
    arguments = {
        "x": (source.x, target.x),
        "pos": (source.pos, target.pos),
        "z": (source.z, target.z),
        "edge_index": edge_index,
    }
    out = layer(**arguments)
    assert out.shape == (8, 9, 8)
    assert torch.equal(layer(**arguments, size=(10, 8)), out)
    arguments["edge_index"] = EdgeIndex(edge_index, sparse_size=(10, 8))
    assert torch.equal(layer(**arguments), out)
    for size in ((10, 9), (8, 10)):
        with pytest.raises(ValueError, match=r"`size`.*\(10, 8\)"):
            layer(**arguments, size=size)
    if pair:
        del arguments["z"]
        untyped = layer(**arguments)
        zeros = (torch.zeros_like(source.z), torch.zeros_like(target.z))
        torch.testing.assert_close(layer(**arguments, z=zeros), untyped)
        assert not torch.allclose(untyped, out)


def test_pairs_of_the_same_nodes(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    twice = layer((graph.x, graph.x), (graph.pos, graph.pos), graph.edge_index, (graph.z, graph.z))
    torch.testing.assert_close(twice, layer(**graph.arguments()), rtol=1e-12, atol=1e-12)


def test_sources_alone(make_layer, make_graph):
    source, pos = make_graph(nodes=10), make_graph(seed=1).pos
    edge_index = source.edge_index.clone()
    edge_index[1] %= 8
    arguments = ((source.x, None), (source.pos, pos), edge_index)
    out = make_layer("conv", root_weight=False)(*arguments)
    full = make_layer("conv", root_weight=False)(
        (source.x, torch.ones(8, 9, 8).double()), *arguments[1:]
    )
    assert torch.equal(out, full)
    for kind in ("conv", "attention"):
        with pytest.raises(ValueError, match=r"`x`.*x\[1\]"):
            make_layer(kind)(*arguments)


def test_edge_features(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, edge_dim=1), make_graph(edge_dim=1)
    out = layer(**graph.arguments())
    assert torch.equal(layer(**graph.replace(edge_attr=graph.edge_attr[:, 0]).arguments()), out)
    zero = layer(**graph.replace(edge_attr=0 * graph.edge_attr).arguments())
    assert not torch.allclose(out, zero)
    plain = make_layer(kind)
    plain.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(plain(**graph.replace(edge_attr=None).arguments()), zero)


def test_avg_num_neighbors(make_layer, make_graph):
    graph = make_graph()
    one = make_layer("conv", root_weight=False)(**graph.arguments())
    nine = make_layer("conv", root_weight=False, avg_num_neighbors=9.0)(**graph.arguments())
    torch.testing.assert_close(one, 3 * nine)


def test_no_edges_and_no_nodes(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    lonely = graph.replace(edge_index=graph.edge_index[:, :0])
    out = layer(**lonely.arguments())
    assert torch.equal(out, layer.lin_root(graph.x))
    empty = graph.replace(
        x=graph.x[:0], pos=graph.pos[:0], z=graph.z[:0], edge_index=graph.edge_index[:, :0]
    )
    assert layer(**empty.arguments()).shape == (0, 9, 8)


def test_in_sequential(kind, make_layer, make_graph):
    graph = make_graph()
    layers = [make_layer(kind, order=order) for order in ((0, 1), (2,))]
    model = Sequential(
        "x, pos, edge_index, z",
        [(layers[0], "x, pos, edge_index, z -> h"), (layers[1], "h, pos, edge_index, z -> h")],
    )
    arguments = (graph.pos, graph.edge_index, graph.z)
    expected = layers[1](layers[0](graph.x, *arguments), *arguments)
    assert torch.equal(model(graph.x, *arguments), expected)


@pytest.mark.parametrize("elements", [[1, 6, 8], [1, 6, 8, 79]])
def test_fixed_elements_change_nothing(kind, make_layer, make_graph, elements):
    graph = make_graph()
    free, fixed = make_layer(kind), make_layer(kind, elements=elements)
    fixed.load_state_dict(free.state_dict())
    torch.testing.assert_close(fixed(**graph.arguments()), free(**graph.arguments()))


def test_radial_functions_of_all_elements_alike(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, pair_radial=False), make_graph()
    arguments = graph.arguments()
    out = layer(**arguments)
    assert out.any() and torch.equal(layer(**(arguments | {"z": None})), out)
    assert torch.equal(layer(**(arguments | {"z": graph.z.flip(0)})), out)
    pairs = make_layer(kind)
    assert not torch.equal(pairs(**(arguments | {"z": graph.z.flip(0)})), pairs(**arguments))


def test_inputs_are_not_changed(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, edge_dim=2), make_graph(edge_dim=2, shift=True)
    copies = {name: value.clone() for name, value in graph.arguments().items()}
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(**graph.arguments()).sum().backward()
    for name, value in graph.arguments().items():
        assert torch.equal(value, copies[name])
        assert not value.requires_grad
        assert value.grad is None
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(kind, make_layer, make_graph, context):
    layer, graph = make_layer(kind), make_graph()
    expected = layer(**graph.arguments())
    with context():
        out = layer.eval()(**graph.arguments())
    assert not out.requires_grad
    assert torch.equal(out, expected)


def test_default_dtype_does_not_matter(kind, make_layer, make_graph):
    graph = make_graph(dtype=torch.float32)
    expected = make_layer(kind, dtype=torch.float32)(**graph.arguments())
    layer = make_layer(kind, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        out = layer(**graph.arguments())
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
