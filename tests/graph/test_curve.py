"""An order of nodes along a space-filling curve."""

import pytest
import torch

from e2former_pyg.graph import CSRNeighborhood
from e2former_pyg.graph.curve import curve_order


def random_points(num=1000, side=20.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return side * torch.rand(num, 3, dtype=torch.float64, generator=generator)


def is_permutation(order, num):
    return torch.equal(order.long().sort().values, torch.arange(num))


@pytest.mark.parametrize("num", [0, 1, 2, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_permutation(num, dtype):
    order = curve_order(random_points(num).to(dtype).requires_grad_())
    assert order.dtype == torch.int32
    assert is_permutation(order, num)


def test_neighbours_in_order_are_near_in_space():
    pos = random_points()
    pos = pos[curve_order(pos).long()]
    steps = (pos[1:] - pos[:-1]).norm(dim=1)
    # Random points have a distance of about 0.66 of the side.
    assert steps.mean() < 0.25 * 0.66 * 20
    # The curve visits one region after another: few points fill a small one.
    first = pos[: pos.size(0) // 8]
    assert (first - first.mean(dim=0)).norm(dim=1).mean() < 0.66 * 20 / 2


def test_z_order():
    """Corners of a cube of two cells a side, x fastest."""
    corners = torch.tensor([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    pos = 2.0 * corners + 0.5
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    order = curve_order(pos[shuffled]).long()
    assert torch.equal(shuffled[order], torch.arange(8))


def test_translations_and_order_within_a_cell():
    pos = random_points(seed=1)
    assert torch.equal(curve_order(pos), curve_order(pos + 128.0))
    same = torch.ones(5, 3)
    assert torch.equal(curve_order(same), torch.arange(5, dtype=torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_finite_is_still_ordered(value):
    pos = random_points(50)
    pos[7, 1] = value
    assert is_permutation(curve_order(pos), 50)
    assert is_permutation(curve_order(torch.full((4, 3), value)), 4)


def test_large_extents_are_clamped():
    pos = random_points(100, side=1e5)
    assert is_permutation(curve_order(pos), 100)


def test_order_is_kept():
    pos = random_points(30)
    index = torch.arange(30)
    graph = CSRNeighborhood.from_edge_index(torch.stack([index, index.roll(1)]), 30)
    order = graph.order(pos)
    assert torch.equal(order, curve_order(pos))
    assert graph.order(pos.flip(0)) is order
    assert graph.transpose().order(pos) is graph.transpose().order(pos.flip(0))
