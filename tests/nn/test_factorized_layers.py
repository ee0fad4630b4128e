"""Layers with ``algorithm="factorized"``: the same parameters, the same function."""

import pytest
import torch

OPTIONS = {
    "plain": ({}, {}),
    "orders": ({"order": (0, 1, 2, 3), "parity": "o3"}, {}),
    "high": ({"order": 6, "lmax": 4}, {}),
    "degrees": ({"lmax": 1, "order": (2,), "root_weight": False}, {}),
    "an order without paths": ({"order": (0, 1, 4), "lmax": 0}, {}),
    "edges": ({"order": (0, 1, 2), "edge_dim": 2}, {"edge_dim": 2, "shift": True}),
}


@pytest.fixture
def make_pair(kind, make_layer):
    """The same layer in both forms."""

    def make(**options):
        direct = make_layer(kind, **options)
        factorized = make_layer(kind, algorithm="factorized", **options)
        for parameter in factorized.parameters():
            torch.nn.init.normal_(parameter)
        assert str(factorized) == str(direct)
        factorized.load_state_dict(direct.state_dict())
        return direct, factorized

    return make


def derivatives(layer, inputs, **others):
    """Output, first derivatives, and those of a function of these by everything."""
    inputs = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    out = layer(**inputs, **others)
    first = torch.autograd.grad(out.square().sum(), list(inputs.values()), create_graph=True)
    second = torch.autograd.grad(
        sum(grad.square().sum() for grad in first),
        [*inputs.values(), *layer.parameters()],
        materialize_grads=True,
    )
    return [out, *first, *second]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_same_function(reference, make_pair, make_graph, options):
    graph = make_graph(**options[1])
    names = [
        name for name in ("x", "pos", "edge_shift", "edge_attr") if vars(graph)[name] is not None
    ]
    inputs = {name: vars(graph)[name] for name in names}
    others = {"edge_index": graph.edge_index, "z": graph.z}
    pair = make_pair(lmax_in=2, **options[0])
    results = [derivatives(layer, inputs, **others) for layer in pair]
    for expected, found in zip(*results, strict=True):
        assert reference.error(found, expected) < 1e-10


def test_same_function_under_strain(reference, make_pair, make_graph):
    graph = make_graph(shift=True)
    generator = torch.Generator().manual_seed(0)
    strain = 0.1 * torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    inputs = {"x": graph.x, "pos": graph.pos, "strain": strain}
    others = {
        "edge_index": graph.edge_index,
        "z": graph.z,
        "edge_shift": graph.edge_shift,
        "batch": torch.tensor([0, 0, 1, 1, 0, 1, 0, 1]),
    }
    results = [derivatives(layer, inputs, **others) for layer in make_pair(order=(0, 1, 2))]
    for expected, found in zip(*results, strict=True):
        assert reference.error(found, expected) < 1e-10


def test_same_function_on_bipartite_graphs(reference, make_pair, make_graph):
    source, target = make_graph(seed=3, nodes=10), make_graph(seed=4, channels=4)
    edge_index = source.edge_index.clone()
    edge_index[1] %= 7
    arguments = (source.x, target.x), (source.pos, target.pos), edge_index, (source.z, target.z)
    direct, factorized = make_pair(in_channels=(8, 4), order=(0, 1, 2))
    assert reference.error(factorized(*arguments), direct(*arguments)) < 1e-12


def test_edgewise_route(reference, make_pair, make_graph):
    """Explainers and hooks see messages whatever the algorithm."""
    graph = make_graph()
    direct, factorized = make_pair(order=(0, 1, 2))
    shapes = []
    factorized.register_message_forward_hook(lambda module, inputs, out: shapes.append(out.shape))
    found = factorized(**graph.arguments())
    assert reference.error(found, direct(**graph.arguments())) < 1e-12
    assert shapes == [(30, direct.coupling.num_rows, 8)]


def test_triton_has_no_factorized_form(kind, make_layer):
    with pytest.raises(RuntimeError, match=r"'triton' is not available.*factorized"):
        make_layer(kind, algorithm="factorized", backend="triton")
