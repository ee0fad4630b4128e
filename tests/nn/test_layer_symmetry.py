"""Rotations, reflections, translations and permutations."""

import math

import pytest
import torch
from e3nn import o3

PARITY = pytest.mark.parametrize("parity", ["so3", "o3"])


@pytest.fixture
def float64_default():
    """e3nn builds the generators of its rotation matrices in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def wigner(lmax, angles):
    return torch.block_diag(*(o3.wigner_D(degree, *angles) for degree in range(lmax + 1)))


def random_angles(seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(3, generator=generator, dtype=torch.float64) * math.pi).unbind()


# A turn by 90 degrees takes edges on one axis to another.
ROTATIONS = {
    "random": random_angles(0),
    "another": random_angles(1),
    "about y": torch.tensor([math.pi / 2, 0.0, 0.0], dtype=torch.float64).unbind(),
    "y to z": torch.tensor([0.0, math.pi / 2, 0.0], dtype=torch.float64).unbind(),
}


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def turned_pair(layer, graph, matrix, lmax, blocks):
    """Output of the turned input, and the turned output."""
    shift = None if graph.edge_shift is None else graph.edge_shift @ matrix.T
    turned = graph.replace(
        x=torch.einsum("ij,njc->nic", blocks[0], graph.x),
        pos=graph.pos @ matrix.T,
        edge_shift=shift,
    )
    expected = torch.einsum("ij,njc->nic", blocks[1], layer(**graph.arguments()))
    return layer(**turned.arguments()), expected


@PARITY
@pytest.mark.parametrize("angles", ROTATIONS.values(), ids=ROTATIONS.keys())
@pytest.mark.parametrize("lmax_in, lmax", [(2, 2), (3, 1), (0, 3)])
def test_rotations(float64_default, kind, make_layer, make_graph, parity, angles, lmax_in, lmax):
    layer = make_layer(
        kind, lmax=lmax, lmax_in=lmax_in, order=(0, 1, 2, 3), parity=parity, edge_dim=2
    )
    graph = make_graph(lmax=lmax_in, edge_dim=2, shift=True)
    matrix = o3.angles_to_matrix(*angles)
    blocks = wigner(lmax_in, angles), wigner(lmax, angles)
    found, expected = turned_pair(layer, graph, matrix, lmax, blocks)
    assert expected[:, 1:].abs().max() > 0.1
    assert relative(found, expected) < 1e-10


def test_rotations_on_axes_alone(float64_default, kind, make_layer, make_graph):
    """Without offsets some edges of the graph lie on y and z, and are turned to other axes."""
    layer, graph = make_layer(kind, order=(0, 1, 2)), make_graph()
    graph = graph.replace(edge_index=torch.tensor([[0, 0, 1, 2, 0], [1, 2, 0, 0, 0]]))
    for angles in ROTATIONS.values():
        matrix = o3.angles_to_matrix(*angles)
        found, expected = turned_pair(layer, graph, matrix, 2, [wigner(2, angles)] * 2)
        assert relative(found, expected) < 1e-10


@pytest.mark.parametrize("seed", [0, 1])
def test_rotations_in_float32(float64_default, kind, make_layer, make_graph, seed):
    angles = random_angles(seed)
    matrix, block = o3.angles_to_matrix(*angles), wigner(2, angles)
    layer, graph = make_layer(kind, dtype=torch.float32), make_graph()
    single = graph.replace(x=graph.x.float(), pos=graph.pos.float())
    turned = graph.replace(
        x=torch.einsum("ij,njc->nic", block, graph.x).float(), pos=(graph.pos @ matrix.T).float()
    )
    out = layer(**single.arguments())
    assert out.dtype == torch.float32
    expected = torch.einsum("ij,njc->nic", block, out.double())
    assert relative(layer(**turned.arguments()), expected) < 2e-6


@pytest.mark.parametrize("order", [(0, 1), (2,), (0, 1, 2, 3)])
def test_reflections(float64_default, kind, make_layer, make_graph, order):
    """A mirror is a turn by 180 degrees times the inversion, which is (-1)^l on features."""
    angles = random_angles(5)
    matrix = -o3.angles_to_matrix(*angles)
    signs = torch.tensor([(-1.0) ** degree for degree in range(3) for _ in range(2 * degree + 1)])
    block = wigner(2, angles) * signs
    graph = make_graph(shift=True)
    natural = make_layer(kind, order=order, parity="o3")
    found, expected = turned_pair(natural, graph, matrix, 2, [block] * 2)
    assert relative(found, expected) < 1e-10
    # All paths together know left from right.
    chiral = make_layer(kind, order=order, parity="so3")
    found, expected = turned_pair(chiral, graph, matrix, 2, [block] * 2)
    assert relative(found, expected) > 1e-3


def test_translations(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    expected = layer(**graph.arguments())
    moved = graph.replace(pos=graph.pos + torch.tensor([1e4, -1e4, 1e4], dtype=torch.float64))
    assert relative(layer(**moved.arguments()), expected) < 1e-9


def test_offsets_are_translations_of_sources(kind, make_layer, make_graph):
    """An atom moved by a cell vector with its offsets taken back is the same crystal."""
    layer, graph = make_layer(kind), make_graph(shift=True)
    cell = torch.tensor([0.0, 40.0, 3.0], dtype=torch.float64)
    pos = graph.pos.clone()
    pos[3] += cell
    shift = graph.edge_shift.clone()
    shift[graph.edge_index[0] == 3] -= cell
    shift[graph.edge_index[1] == 3] += cell
    wrapped = graph.replace(pos=pos, edge_shift=shift)
    assert relative(layer(**wrapped.arguments()), layer(**graph.arguments())) < 1e-12


def test_permutation_of_nodes(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    perm = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    permuted = graph.replace(
        x=graph.x[perm],
        pos=graph.pos[perm],
        z=graph.z[perm],
        edge_index=perm.argsort()[graph.edge_index],
    )
    assert relative(layer(**permuted.arguments()), layer(**graph.arguments())[perm]) < 1e-12


def test_permutation_of_edges(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, edge_dim=3), make_graph(shift=True, edge_dim=3)
    perm = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    permuted = graph.replace(
        edge_index=graph.edge_index[:, perm],
        edge_shift=graph.edge_shift[perm],
        edge_attr=graph.edge_attr[perm],
    )
    assert relative(layer(**permuted.arguments()), layer(**graph.arguments())) < 1e-12


def test_a_batch_is_its_graphs_one_by_one(kind, make_layer, make_graph):
    layer = make_layer(kind)
    graphs = [make_graph(seed=seed, nodes=nodes) for seed, nodes in ((0, 8), (1, 5), (2, 11))]
    starts = [0, 8, 13]
    together = graphs[0].replace(
        x=torch.cat([graph.x for graph in graphs]),
        pos=torch.cat([graph.pos for graph in graphs]),
        z=torch.cat([graph.z for graph in graphs]),
        edge_index=torch.cat(
            [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)], dim=1
        ),
    )
    expected = torch.cat([layer(**graph.arguments()) for graph in graphs])
    assert relative(layer(**together.arguments()), expected) < 1e-12
