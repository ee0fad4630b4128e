"""`aggregate` against index_add, with derivatives, in one chunk and in many."""

import pytest
import torch

from e2former_pyg.functional import aggregate, chunks
from e2former_pyg.graph import CSRNeighborhood

SOURCES, TARGETS, EDGES = 5, 6, 14


def make(shape, heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.stack(
        [
            torch.randint(SOURCES, (EDGES,), generator=generator),
            torch.randint(1, TARGETS, (EDGES,), generator=generator),  # target 0 is isolated
        ]
    )
    x = torch.randn(SOURCES, *shape, dtype=torch.float64, generator=generator)
    weight = torch.randn(EDGES, heads, dtype=torch.float64, generator=generator)
    return edge_index, x, weight


def expected(edge_index, x, weight):
    heads = weight.size(1)
    values = x[edge_index[0]].unflatten(-1, (heads, -1))
    shape = (EDGES, *(1,) * (x.dim() - 2), heads, 1)
    messages = (values * weight.view(shape)).flatten(-2)
    return x.new_zeros(TARGETS, *x.shape[1:]).index_add(0, edge_index[1], messages)


@pytest.mark.parametrize("budget", [2**22, 8])
@pytest.mark.parametrize(("shape", "heads"), [((4,), 1), ((9, 6), 3), ((2, 3, 4), 4)])
def test_matches_index_add(monkeypatch, shape, heads, budget):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    edge_index, x, weight = make(shape, heads)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (SOURCES, TARGETS))
    out = aggregate(x, neighborhood, weight)
    torch.testing.assert_close(out, expected(edge_index, x, weight), rtol=1e-13, atol=1e-13)
    assert (out[0] == 0).all()
    plain = aggregate(x, neighborhood)
    ones = torch.ones(EDGES, 1, dtype=torch.float64)
    torch.testing.assert_close(plain, expected(edge_index, x, ones), rtol=1e-13, atol=1e-13)

    inputs = (x.clone().requires_grad_(), weight.clone().requires_grad_())

    def run(x, weight):
        return aggregate(x, neighborhood, weight)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_without_edges_or_nodes():
    empty = torch.zeros(2, 0, dtype=torch.long)
    out = aggregate(torch.ones(3, 4), CSRNeighborhood.from_edge_index(empty, (3, 2)))
    assert out.shape == (2, 4)
    assert (out == 0).all()
    assert aggregate(torch.ones(0, 4), CSRNeighborhood.from_edge_index(empty, (0, 0))).shape == (
        0,
        4,
    )


def test_half_precision_accumulates_in_float32():
    edge_index = torch.stack([torch.zeros(3000, dtype=torch.long)] * 2)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (1, 1))
    out = aggregate(torch.ones(1, 2, dtype=torch.bfloat16), neighborhood)
    assert out.dtype == torch.bfloat16
    assert float(out[0, 0]) == pytest.approx(3000, rel=1e-2)  # bfloat16 sums would stop at 256


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(4, 4), None, r"`x` must have shape \[5, ..., C\], got \[4, 4\]"),
        (torch.ones(5, 4), torch.ones(3), r"`weight` must have shape \[14\]"),
        (torch.ones(5, 4), torch.ones(EDGES, 3), r"`weight` .*divides the 4 channels.*got 3"),
    ],
)
def test_errors_name_the_argument(x, weight, message):
    edge_index, _, _ = make((4,), 1)
    neighborhood = CSRNeighborhood.from_edge_index(edge_index, (SOURCES, TARGETS))
    with pytest.raises(ValueError, match=message):
        aggregate(x, neighborhood, weight)
