"""Parameters of the layers: creation, reset, copies, and training."""

import copy
import io
import pickle

import pytest
import torch

from e2former_pyg.functional.paths import _tables, coupling, row_tables

OPTIONS = {"edge_dim": 2, "order": (0, 1, 2)}


@pytest.fixture
def layer(kind, make_layer):
    return make_layer(kind, **OPTIONS)


@pytest.fixture
def graph(make_graph):
    return make_graph(edge_dim=2, shift=True)


def test_copies(layer, graph):
    expected = layer(**graph.arguments())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert str(other) == str(layer)
        assert torch.equal(other(**graph.arguments()), expected)
    other = copy.deepcopy(layer)
    other.reset_parameters()
    assert torch.equal(layer(**graph.arguments()), expected)


def test_state_dict(kind, layer, graph, make_layer):
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = make_layer(kind, **OPTIONS, backend="torch")
    other.reset_parameters()
    assert not torch.allclose(other(**graph.arguments()), layer(**graph.arguments()))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(**graph.arguments()), layer(**graph.arguments()))


def test_reset_parameters(layer):
    names = [name for name, _ in layer.named_parameters()]
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        layer.reset_parameters()
        states.append({name: value.clone() for name, value in layer.state_dict().items()})
    for name in names:
        assert torch.equal(states[0][name], states[1][name]), name
        constant = not states[0][name].any()
        assert constant or not torch.equal(states[0][name], states[2][name]), name
        assert not constant or name == "sink" or name.endswith("bias"), name


def test_construction_is_a_reset(kind, make_layer):
    """The seed decides, and no parameter keeps what was in memory."""
    first, second = make_layer(kind, **OPTIONS), make_layer(kind, **OPTIONS)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.isfinite(value).all(), name


def test_all_parameters_are_trained(layer, graph):
    layer(**graph.arguments()).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_a_fresh_layer_keeps_the_scale(kind, make_layer, make_graph):
    """Untrained outputs are neither zero nor huge, in every degree."""
    layer = make_layer(kind, in_channels=32, out_channels=32)
    layer.reset_parameters()
    out = layer(**make_graph(channels=32, nodes=20, edges=200).arguments())
    for degree in range(3):
        scale = out[:-1, degree**2 : (degree + 1) ** 2].square().mean().sqrt()
        assert 0.05 < scale < 20


def test_number_of_parameters_does_not_depend_on_the_graph(kind, make_layer):
    names = dict(make_layer(kind, **OPTIONS).named_parameters()).keys()
    assert {name.split(".")[0] for name in names} >= {"radial", "mix", "lin_root", "lin_edge"}
    without = make_layer(kind, order=(0, 1, 2), root_weight=False)
    assert {name.split(".")[0] for name, _ in without.named_parameters()}.isdisjoint(
        {"lin_root", "lin_edge"}
    )


def test_a_few_steps_of_force_training_lower_the_loss(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(graph.pos.shape, dtype=torch.float64, generator=generator)
    target[-1] = 0
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        pos = graph.pos.clone().requires_grad_()
        energy = layer(**graph.replace(pos=pos).arguments())[:, 0].sum()
        (force,) = torch.autograd.grad(energy, pos, create_graph=True)
        loss = (force - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_copies_share_cached_tables(layer, graph):
    """Tables belong to what is coupled, not to one object: copies must not add to the cache."""
    layer(**graph.arguments())
    sizes = _tables.cache_info().currsize, row_tables.cache_info().currsize
    assert min(sizes) > 0
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.coupling == layer.coupling and hash(other.coupling) == hash(layer.coupling)
        other(**graph.arguments())
    assert (_tables.cache_info().currsize, row_tables.cache_info().currsize) == sizes
    assert coupling(2, 2, (0, 1)) != coupling(2, 2, (0, 1), "o3")
