"""Layers and graphs for the tests of nn/."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from e2former_pyg.nn import E2FormerAttention, E2FormerConv

LAYERS = {"conv": E2FormerConv, "attention": E2FormerAttention}


@dataclass(frozen=True)
class Graph:
    """The arguments of a layer; ``pos`` has atoms on an axis, one on another, one isolated."""

    x: Tensor
    pos: Tensor
    edge_index: Tensor
    z: Tensor
    edge_shift: Tensor | None = None
    edge_attr: Tensor | None = None

    def replace(self, **changes) -> "Graph":
        return replace(self, **changes)

    def arguments(self) -> dict:
        return dict(vars(self))


def make_graph(
    *,
    seed=0,
    nodes=8,
    edges=30,
    lmax=2,
    channels=8,
    edge_dim=None,
    shift=False,
    dtype=torch.float64,
) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    pos = 1.5 * random(nodes, 3)
    pos[1] = pos[0] + torch.tensor([0.0, 1.4, 0.0], dtype=dtype)
    pos[2] = pos[0] - torch.tensor([0.0, 0.0, 1.7], dtype=dtype)
    edge_index = torch.randint(nodes - 1, (2, edges), generator=generator)
    edge_index[:, :6] = torch.tensor([[0, 0, 0, 1, 2, 1], [0, 1, 2, 0, 0, 0]])
    return Graph(
        random(nodes, (lmax + 1) ** 2, channels),
        pos,
        edge_index[:, torch.randperm(edges, generator=generator)],
        torch.tensor([1, 6, 8, 1])[torch.randint(4, (nodes,), generator=generator)],
        random(edges, 3) if shift else None,
        None if edge_dim is None else random(edges, edge_dim),
    )


def make_layer(kind, *, in_channels=8, out_channels=8, lmax=2, dtype=torch.float64, **kwargs):
    """A layer in which no parameter is zero. ``groups`` is also the number of heads."""
    torch.manual_seed(1)
    groups = kwargs.pop("groups", 4)
    if kind == "conv":
        layer = E2FormerConv(in_channels, out_channels, lmax, groups=groups, **kwargs)
    else:
        kwargs = {"qk_channels": 4, "directional": True, "heads": groups} | kwargs
        layer = E2FormerAttention(in_channels, out_channels, lmax, **kwargs)
    layer.to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return layer


@pytest.fixture(params=LAYERS)
def kind(request) -> str:
    """The name of a layer."""
    return request.param


@pytest.fixture(name="make_layer", scope="session")
def make_layer_fixture():
    return make_layer


@pytest.fixture(name="make_graph", scope="session")
def make_graph_fixture():
    return make_graph
