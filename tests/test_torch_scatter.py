"""With torch-scatter, PyG's aggregation may take its kernels, some of which lack second
derivatives: nothing here may depend on it, in values and derivatives.

PyG takes `segment_csr` for a sorted `EdgeIndex` where algorithms have to be deterministic.
"""

import pytest
import torch
import torch_geometric.typing
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing, SchNet

from e2former_pyg import E2FormerAttention, E2FormerConv, E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.transforms import RadiusGraph

pytest.importorskip("torch_scatter")

CUTOFF = 3.0


@pytest.fixture(autouse=True, params=[False, True], ids=["default", "deterministic"])
def deterministic(request):
    """PyG's aggregations note the setting when they are built."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=[E2FormerConv, E2FormerAttention], ids=["conv", "attention"])
def layer(request):
    torch.manual_seed(1)
    options = {} if request.param is E2FormerConv else {"qk_channels": 3, "directional": True}
    groups = {"groups" if request.param is E2FormerConv else "heads": 2}
    return request.param(4, 4, 1, cutoff=CUTOFF, num_radial=6, **groups, **options).double()


def atoms(num_atoms=6):
    """Elements, positions and features; the last atom is out of reach."""
    generator = torch.Generator().manual_seed(0)
    pos = 0.9 * torch.randn(num_atoms, 3, dtype=torch.float64, generator=generator)
    pos[-1] = 50.0
    x = torch.randn(num_atoms, 4, 4, dtype=torch.float64, generator=generator)
    return torch.tensor([1, 6, 8, 1, 6, 7])[:num_atoms], pos.requires_grad_(), x.requires_grad_()


def sorted_edges(pos):
    edge_index = radius_graph(pos.detach(), CUTOFF)[0]
    return EdgeIndex(edge_index, sparse_size=(len(pos), len(pos)), sort_order="col")


def edge_by_edge(model, way):
    """Makes the layers of a model take the edge-wise route, and fail if they do not."""
    for module in model.modules():
        if isinstance(module, MessagePassing):
            module.message_and_aggregate = None
            if way == "hook":
                module.register_message_forward_hook(lambda module, inputs, message: None)
            else:
                module.fuse = False


def derivatives(scalars, inputs, parameters):
    """The first derivatives of a function, and those of their norm by all it depends on."""
    first = torch.autograd.grad(scalars.sum(), inputs, create_graph=True)
    norm = sum((grad * grad).sum() for grad in first)
    second = torch.autograd.grad(norm, [*inputs, *parameters], materialize_grads=True)
    return [*first, *second]


def compare(reference, monkeypatch, function, expected):
    """With torch-scatter and without it."""
    assert torch_geometric.typing.WITH_TORCH_SCATTER
    found = function()
    monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SCATTER", False)
    for results in (found, function()):
        for one, other in zip(results, expected, strict=True):
            assert reference.error(one, other) < 1e-10


@pytest.mark.parametrize("way", ["hook", "unfused"])
@pytest.mark.parametrize("edges", ["sorted", "shuffled"])
def test_routes_of_layers_agree(reference, monkeypatch, layer, way, edges):
    z, pos, x = atoms()
    edge_index = sorted_edges(pos)
    if edges == "shuffled":
        generator = torch.Generator().manual_seed(2)
        perm = torch.randperm(edge_index.size(1), generator=generator)
        edge_index = edge_index.as_tensor()[:, perm]

    def run():
        out = layer(x, pos, edge_index, z)
        return [out, *derivatives(out.square(), [x, pos], layer.parameters())]

    fused = run()
    edge_by_edge(layer, way)
    compare(reference, monkeypatch, run, fused)


@pytest.mark.parametrize("way", ["hook", "unfused"])
def test_second_derivatives_of_layers(layer, way):
    z, pos, x = atoms(4)
    edge_index = sorted_edges(pos)
    edge_by_edge(layer, way)
    assert torch.autograd.gradgradcheck(lambda x, pos: layer(x, pos, edge_index, z), (x, pos))


@pytest.mark.parametrize("way", ["hook", "unfused"])
def test_routes_of_the_potential_agree(reference, monkeypatch, way):
    torch.manual_seed(0)
    options = {"hidden_channels": 4, "num_layers": 2, "lmax": 1, "heads": 2, "num_radial": 6}
    model = E2FormerPotential(cutoff=CUTOFF, stress=True, **options).double()
    z, pos, _ = atoms()
    cell = 4.0 * torch.eye(3, dtype=torch.float64)

    def run():
        """A step of training on energies and forces."""
        out = model(z, pos, cell=cell)
        loss = out.energy.square().sum() + out.forces.square().sum() + out.stress.square().sum()
        grads = torch.autograd.grad(loss, [pos, *model.parameters()], materialize_grads=True)
        return [out.energy, out.forces, out.stress, *grads]

    fused = run()
    edge_by_edge(model, way)
    compare(reference, monkeypatch, run, fused)


def test_schnet_on_our_graph(reference, monkeypatch):
    torch.manual_seed(0)
    z, pos, _ = atoms()
    model = SchNet(
        hidden_channels=8,
        num_filters=8,
        num_interactions=2,
        num_gaussians=10,
        cutoff=CUTOFF,
        interaction_graph=RadiusGraph(CUTOFF),
    ).double()

    def energy(pos):
        return model(z, pos, torch.zeros_like(z))

    assert torch.autograd.gradgradcheck(energy, pos)

    def run():
        return [energy(pos), *derivatives(energy(pos), [pos], model.parameters())]

    compare(reference, monkeypatch, run, run())
