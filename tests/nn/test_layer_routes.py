"""The fused route and the edge-wise one, which explainers and hooks take."""

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.explain import DummyExplainer, Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

OPTIONS = {
    "plain": ({}, {}),
    "orders": ({"order": (0, 1, 2), "parity": "o3"}, {}),
    "degrees": ({"lmax": 1, "order": (2,), "root_weight": False}, {}),
    "edges": ({"edge_dim": 2}, {"edge_dim": 2, "shift": True}),
}
OPTIONS_ = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def derivatives(layer, graph):
    """Output, forces, and the gradient of a function of the forces by everything."""
    names = [
        name for name in ("x", "pos", "edge_shift", "edge_attr") if vars(graph)[name] is not None
    ]
    inputs = {name: vars(graph)[name].clone().requires_grad_() for name in names}
    out = layer(**graph.replace(**inputs).arguments())
    first = torch.autograd.grad(out.square().sum(), list(inputs.values()), create_graph=True)
    parameters = list(layer.parameters())
    second = torch.autograd.grad(
        sum((grad * grad).sum() for grad in first),
        [*inputs.values(), *parameters],
        materialize_grads=True,
        allow_unused=True,
    )
    return [out, *first, *second]


@OPTIONS_
def test_fuse_can_be_switched_off(reference, kind, make_layer, make_graph, options):
    layer, graph = make_layer(kind, lmax_in=2, **options[0]), make_graph(**options[1])
    fused = derivatives(layer, graph)
    layer.fuse = False  # PyG's switch; edges then stay in the caller's order
    for one, other in zip(fused, derivatives(layer, graph), strict=True):
        assert reference.error(other, one) < 1e-10


@OPTIONS_
@pytest.mark.parametrize("sort", [False, True])
def test_routes_agree(reference, kind, make_layer, make_graph, options, sort):
    layer, graph = make_layer(kind, lmax_in=2, **options[0]), make_graph(**options[1])
    if sort:
        perm = graph.edge_index[1].sort().indices
        graph = graph.replace(
            edge_index=EdgeIndex(graph.edge_index[:, perm], sort_order="col", sparse_size=(8, 8)),
            edge_shift=None if graph.edge_shift is None else graph.edge_shift[perm],
            edge_attr=None if graph.edge_attr is None else graph.edge_attr[perm],
        )
    assert layer.fuse
    fused = derivatives(layer, graph)
    seen = []
    handle = layer.register_message_forward_hook(
        lambda module, inputs, message: seen.append(message.shape)
    )
    edgewise = derivatives(layer, graph)
    assert seen == [(30, layer.coupling.num_rows, 8)]
    handle.remove()
    for one, other in zip(fused, edgewise, strict=True):
        assert reference.error(other, one) < 1e-10
    assert torch.equal(layer(**graph.arguments()), fused[0])
    assert len(seen) == 1


def test_routes_agree_on_bipartite_graphs(reference, kind, make_layer, make_graph):
    layer = make_layer(kind, in_channels=(8, 4))
    source, target = make_graph(seed=3, nodes=10), make_graph(seed=4, channels=4)
    edge_index = source.edge_index.clone()
    edge_index[1] %= 7
    arguments = (source.x, target.x), (source.pos, target.pos), edge_index, (source.z, target.z)
    fused = layer(*arguments)
    layer.register_message_forward_hook(lambda module, inputs, message: None)
    assert reference.error(layer(*arguments), fused) < 1e-12


def test_routes_agree_under_strain(reference, kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph(shift=True)
    generator = torch.Generator().manual_seed(0)
    strain = 0.1 * torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    batch = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1])
    strain.requires_grad_()
    results = []
    for edgewise in (False, True):
        if edgewise:
            layer.register_message_forward_hook(lambda module, inputs, message: None)
        out = layer(**graph.arguments(), strain=strain, batch=batch)
        results.append((out, *torch.autograd.grad(out.square().sum(), strain)))
    for one, other in zip(*results, strict=True):
        assert reference.error(other, one) < 1e-10
    assert reference.error(layer(**graph.arguments()), results[0][0]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_routes_agree_in_low_precision(reference, kind, make_layer, make_graph, dtype):
    graph = make_graph(dtype=torch.float32)
    exact = make_layer(kind, dtype=dtype).double()
    expected = exact(**make_graph().arguments())
    layer, graph = make_layer(kind, dtype=dtype), graph.replace(x=graph.x.to(dtype))
    fused = layer(**graph.arguments())
    layer.register_message_forward_hook(lambda module, inputs, message: None)
    edgewise = layer(**graph.arguments())
    assert fused.dtype == edgewise.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    assert reference.error(fused, expected) < tolerance
    assert reference.error(edgewise, expected) < tolerance


def test_hooks_of_propagate(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    expected = layer(**graph.arguments())
    calls = []

    def note(name):
        return lambda *args: calls.append(name)

    handles = [
        layer.register_propagate_forward_pre_hook(note("propagate_pre")),
        layer.register_message_and_aggregate_forward_pre_hook(note("fused_pre")),
        layer.register_message_and_aggregate_forward_hook(note("fused")),
        layer.register_propagate_forward_hook(note("propagate")),
    ]
    assert torch.equal(layer(**graph.arguments()), expected)
    assert calls == ["propagate_pre", "fused_pre", "fused", "propagate"]

    calls.clear()
    handles += [
        layer.register_message_forward_pre_hook(note("message_pre")),
        layer.register_aggregate_forward_hook(note("aggregate")),
    ]
    torch.testing.assert_close(layer(**graph.arguments()), expected)
    assert calls == ["propagate_pre", "message_pre", "aggregate", "propagate"]
    for handle in handles:
        handle.remove()

    layer.register_propagate_forward_hook(lambda module, inputs, out: 0 * out)
    assert torch.equal(layer(**graph.arguments()), layer.lin_root(graph.x))


def test_message_hooks_see_edges_in_the_order_of_the_caller(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, root_weight=False), make_graph()
    messages = []
    layer.register_message_forward_hook(lambda module, inputs, out: messages.append(out))
    layer(**graph.arguments())
    perm = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    layer(**graph.replace(edge_index=graph.edge_index[:, perm]).arguments())
    torch.testing.assert_close(messages[1], messages[0][perm], rtol=1e-12, atol=1e-12)


# Explainers ##################################################################


@pytest.mark.parametrize("wrap", [lambda edges: edges, EdgeIndex], ids=["Tensor", "EdgeIndex"])
def test_edge_masks_are_in_the_order_of_the_caller(kind, make_layer, make_graph, wrap):
    """Messages are linear in the mask: one edge alone gives one message alone."""
    layer, graph = make_layer(kind, root_weight=False), make_graph()
    expected = layer(**graph.arguments())
    messages = []
    handle = layer.register_message_forward_hook(lambda module, inputs, out: messages.append(out))
    layer(**graph.arguments())
    handle.remove()
    arguments = graph.replace(edge_index=wrap(graph.edge_index)).arguments()

    total = torch.zeros_like(expected)
    for edge in range(30):
        mask = torch.zeros(30, dtype=torch.float64)
        mask[edge] = 1.0
        set_masks(layer, torch.nn.Parameter(mask), graph.edge_index, apply_sigmoid=False)
        out = layer(**arguments)
        clear_masks(layer)
        target = int(graph.edge_index[1, edge])
        alone = layer.mix(messages[0][edge : edge + 1])[0]
        scale = expected.abs().max() * 1e-12
        factor = layer.avg_num_neighbors**-0.5 if kind == "conv" else 1.0
        assert (out[target] - alone * factor).abs().max() <= scale
        assert not torch.cat([out[:target], out[target + 1 :]]).any()
        total += out
    torch.testing.assert_close(total, expected)
    assert torch.equal(layer(**arguments), expected)


@pytest.mark.parametrize("algorithm", [DummyExplainer, GNNExplainer])
@pytest.mark.parametrize("node_mask_type", [None, "object", "attributes"])
def test_explainers(kind, make_layer, make_graph, algorithm, node_mask_type):
    layer = make_layer(kind, lmax=0, order=(0,), dtype=torch.float32)
    graph = make_graph(lmax=0, dtype=torch.float32)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, edge_index, pos, z):
            return self.layer(x, pos, edge_index, z).flatten(1)

    explainer = Explainer(
        Model(),
        algorithm=algorithm() if algorithm is DummyExplainer else algorithm(epochs=3),
        explanation_type="model",
        node_mask_type=node_mask_type,
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node"},
    )
    explanation = explainer(graph.x.squeeze(1), graph.edge_index, pos=graph.pos, z=graph.z, index=2)
    assert explanation.edge_mask.shape == (30,)
    assert explanation.edge_mask.min() >= 0
    assert explanation.edge_mask.max() <= 1
    if algorithm is GNNExplainer:
        # Only edges into the node that is explained matter.
        assert not explanation.edge_mask[graph.edge_index[1] != 2].any()
        assert explanation.edge_mask.any()
    assert not layer.explain


# Dropout #####################################################################


def test_dropout_is_the_same_on_both_routes(reference, make_layer, make_graph):
    layer, graph = make_layer("attention", dropout=0.4), make_graph()
    without = layer.eval()(**graph.arguments())
    layer.train()
    torch.manual_seed(3)
    fused = layer(**graph.arguments())
    other = layer(**graph.arguments())
    layer.register_message_forward_hook(lambda module, inputs, message: None)
    torch.manual_seed(3)
    edgewise = layer(**graph.arguments())
    assert reference.error(edgewise, fused) < 1e-12
    assert reference.error(other, fused) > 1e-2
    assert reference.error(without, fused) > 1e-2
