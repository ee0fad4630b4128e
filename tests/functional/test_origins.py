"""Origins near the atoms that they serve."""

import math

import pytest
import torch

from e2former_pyg.functional.origins import origins, reach


def positions(size, count=200):
    generator = torch.Generator().manual_seed(0)
    return size * torch.rand(count, 3, dtype=torch.float64, generator=generator) - 40.0


def test_one_origin_is_enough_nearby():
    pos = positions(20.0)
    found = origins(pos, 18.0)
    assert found.label is None
    assert found.points.shape == (1, 3)
    assert (pos - found.points).norm(dim=-1).max() <= 18.0


@pytest.mark.parametrize("distance", [4.0, 9.0])
def test_many_origins(distance):
    pos = positions(60.0)
    found = origins(pos, distance)
    assert 1 < found.points.size(0) <= math.ceil(60 * math.sqrt(3) / (2 * distance)) ** 3
    assert found.label.unique().numel() == found.points.size(0)
    assert (pos - found.points[found.label]).norm(dim=-1).max() <= distance * (1 + 1e-12)


def test_origins_are_constants():
    pos = positions(60.0).requires_grad_()
    assert not origins(pos, 9.0).points.requires_grad
    assert not origins(pos, 90.0).points.requires_grad


def test_without_targets():
    found = origins(torch.empty(0, 3, dtype=torch.float64), 5.0)
    assert found.label is None
    assert torch.equal(found.points, torch.zeros(1, 3, dtype=torch.float64))


def test_reach():
    """Further for low orders and low precision, far beyond 200 Å up to order 4 in float32."""
    assert reach(0, 5.0, torch.float64) == math.inf
    for dtype in (torch.float32, torch.bfloat16):
        assert reach(4, 5.0, dtype) > 200 * math.sqrt(3)
    assert reach(1, 5.0, torch.float64) > 1e4
    for dtype in (torch.float32, torch.float64):
        found = [reach(order, 5.0, dtype) for order in range(1, 9)]
        assert found == sorted(found, reverse=True)
        assert found[-1] > 0.5
        assert reach(3, 10.0, dtype) == pytest.approx(2 * reach(3, 5.0, dtype))
