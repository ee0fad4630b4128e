"""``return_attention_weights`` of the attention layer."""

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_csr_tensor


@pytest.mark.parametrize("edge_dim", [None, 2])
@pytest.mark.parametrize("directional", [False, True])
def test_weights_are_those_of_the_definition(
    reference, make_layer, make_graph, edge_dim, directional
):
    layer = make_layer("attention", edge_dim=edge_dim, directional=directional, order=(0, 1))
    graph = make_graph(edge_dim=edge_dim, shift=True)
    # What queries and keys are made of is tested elsewhere: here they are taken as they come.
    made = {}
    handle = layer.register_message_and_aggregate_forward_pre_hook(
        lambda module, inputs: made.update(inputs[-1])
    )
    out, (edge_index, alpha) = layer(**graph.arguments(), return_attention_weights=True)
    handle.remove()
    assert torch.equal(out, layer(**graph.arguments()))
    assert edge_index is graph.edge_index
    assert alpha.shape == (30, 4)

    elements, types = graph.z.unique(return_inverse=True)
    splines = layer.radial(elements, elements)
    case = reference.Case(
        graph.edge_index,
        graph.pos,
        made["v"][0],
        splines.coefficients.detach(),
        types,
        types,
        orders=(0, 1),
        groups=4,
        lmax=2,
        cutoff=layer.cutoff,
        q=made["q"][1],
        k=made["k"][0],
        u=made["u"][1],
        sink=layer.sink,
        edge_shift=graph.edge_shift,
        edge_bias=None if edge_dim is None else layer.lin_edge(graph.edge_attr),
    )
    assert reference.error(alpha, reference.attention_weights(case)) < 1e-12
    # And so is the whole layer.
    expected = layer.lin_root(graph.x)
    rows = reference.naive(case)
    start = 0
    for degree, paths in enumerate(layer.coupling.paths_per_degree):
        stop = start + (2 * degree + 1) * paths
        weight = layer.mix.weight[degree].view(paths, 8, 8)
        part = rows[:, start:stop].view(8, 2 * degree + 1, paths, 8)
        expected[:, degree**2 : (degree + 1) ** 2] += torch.einsum("nmpc,pcd->nmd", part, weight)
        start = stop
    assert reference.error(out, expected) < 1e-12


def test_rows_sum_to_less_than_one(make_layer, make_graph):
    layer, graph = make_layer("attention"), make_graph()
    _, (_, alpha) = layer(**graph.arguments(), return_attention_weights=True)
    total = torch.zeros(8, 4, dtype=torch.float64).index_add(0, graph.edge_index[1], alpha)
    assert (alpha >= 0).all()
    assert (total < 1).all()
    assert total[:3].min() > 0.01
    length = (graph.pos[graph.edge_index[0]] - graph.pos[graph.edge_index[1]]).norm(dim=1)
    assert not alpha[length >= layer.cutoff].any()
    assert (alpha[length < layer.cutoff] > 0).all()


def test_a_low_sink_leaves_a_softmax(make_layer, make_graph):
    layer, graph = make_layer("attention", cutoff=20.0), make_graph()
    with torch.no_grad():
        layer.sink.fill_(-200.0)
    _, (_, alpha) = layer(**graph.arguments(), return_attention_weights=True)
    total = torch.zeros(8, 4, dtype=torch.float64).index_add(0, graph.edge_index[1], alpha)
    has_edges = graph.edge_index[1].bincount(minlength=8) > 0
    assert (total[has_edges] - 1).abs().max() < 1e-12
    assert not total[~has_edges].any()


def test_permutation_of_edges(make_layer, make_graph):
    layer, graph = make_layer("attention"), make_graph()
    _, (_, alpha) = layer(**graph.arguments(), return_attention_weights=True)
    perm = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    permuted = graph.replace(edge_index=graph.edge_index[:, perm])
    _, (given, other) = layer(**permuted.arguments(), return_attention_weights=True)
    assert torch.equal(given, graph.edge_index[:, perm])
    torch.testing.assert_close(other, alpha[perm], rtol=1e-12, atol=1e-12)
    # Sorted edges, as an EdgeIndex, keep their places, too.
    perm = graph.edge_index[1].sort(stable=True).indices
    edges = EdgeIndex(graph.edge_index[:, perm], sort_order="col", sparse_size=(8, 8))
    _, (given, other) = layer(
        **graph.replace(edge_index=edges).arguments(), return_attention_weights=True
    )
    assert given is edges
    torch.testing.assert_close(other, alpha[perm], rtol=1e-12, atol=1e-12)


def test_bipartite(make_layer, make_graph):
    layer = make_layer("attention", in_channels=(8, 4))
    source, target = make_graph(seed=3, nodes=10), make_graph(seed=4, channels=4)
    edge_index = source.edge_index.clone()
    edge_index[1] %= 7
    out, (_, alpha) = layer(
        (source.x, target.x), (source.pos, target.pos), edge_index, return_attention_weights=True
    )
    assert out.shape == (8, 9, 8)
    assert alpha.shape == (30, 4)
    assert alpha.max() > 0.01


def test_without_edges(make_layer, make_graph):
    layer, graph = make_layer("attention"), make_graph()
    graph = graph.replace(edge_index=graph.edge_index[:, :0])
    _, (_, alpha) = layer(**graph.arguments(), return_attention_weights=True)
    assert alpha.shape == (0, 4)


def test_weights_are_before_dropout(make_layer, make_graph):
    layer, graph = make_layer("attention", dropout=0.5), make_graph()
    _, (_, training) = layer(**graph.arguments(), return_attention_weights=True)
    layer.eval()
    _, (_, evaluation) = layer(**graph.arguments(), return_attention_weights=True)
    assert torch.equal(training, evaluation)


def test_weights_can_be_differentiated(make_layer, make_graph):
    layer, graph = make_layer("attention"), make_graph()
    pos = graph.pos.clone().requires_grad_()
    _, (_, alpha) = layer(**graph.replace(pos=pos).arguments(), return_attention_weights=True)
    assert torch.autograd.grad(alpha.square().sum(), pos)[0].abs().max() > 1e-3


def test_weights_of_a_sparse_adjacency(make_layer, make_graph):
    """Its edges come as they are numbered in the weights."""
    layer, graph = make_layer("attention"), make_graph()
    edges = graph.edge_index.unique(dim=1)  # sparse tensors add up multiple edges
    _, (_, expected) = layer(
        **graph.replace(edge_index=edges).arguments(), return_attention_weights=True
    )
    adj_t = to_torch_csr_tensor(edges.flip(0), size=(8, 8))
    _, (found, alpha) = layer(
        **graph.replace(edge_index=adj_t).arguments(), return_attention_weights=True
    )
    assert found.layout == torch.strided and found.shape == edges.shape
    order = (found[0] * 8 + found[1]).argsort()
    assert torch.equal(found[:, order], edges)
    torch.testing.assert_close(alpha[order], expected, rtol=1e-12, atol=1e-12)
