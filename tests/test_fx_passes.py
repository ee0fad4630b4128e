"""Simplified graphs give the same values with fewer operations."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from e2former_pyg.fx_passes import simplify

TABLE = torch.arange(6.0).view(2, 3)


def simplified(function, *arguments):
    traced = make_fx(function)(*arguments)
    return traced, simplify(traced, arguments)


def operations(graph):
    names = [getattr(n.target, "__name__", "") for n in graph.graph.nodes]
    return [name for n, name in zip(graph.graph.nodes, names, strict=True) if n.op[:4] == "call"]


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_same(function, *arguments):
    """On the inputs of the trace and on others."""
    traced, fewer = simplified(function, *arguments)
    for inputs in (arguments, [3 * x.flip(0) for x in arguments]):
        kept = [x.clone() for x in inputs]
        for found, expected in zip(fewer(*inputs), function(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert found.stride() == expected.stride()
        assert all(torch.equal(x, y) for x, y in zip(kept, inputs, strict=True))
    assert len(operations(fewer)) < len(operations(traced))
    return fewer


def test_repeated_operations_are_done_once():
    def function(x, y):
        return (x * y).sin() + (x * y).cos(), (x * y).sum(0), (x * 2).sin(), (x * 2.0).cos()

    fewer = assert_same(function, random(2, 3), random(2, 3))
    # 2 and 2.0 could differ for integers.
    assert operations(fewer).count("mul") == 3


def test_constants_are_computed_once():
    def function(x):
        index = torch.arange(2).unsqueeze(1) * 3 + torch.arange(3)
        return x.flatten()[index] * (2 * TABLE).exp() + torch.zeros_like(TABLE), x

    fewer = assert_same(function, random(2, 3))
    assert not {"exp", "unsqueeze"} & set(operations(fewer))


def test_copies_and_views_that_change_nothing_are_dropped():
    def function(x):
        same = x.view(6).view(2, 3).t().t().detach().clone().float().expand(2, 3) * 1
        return same.sin(), same.view(3, 2).view(-1).cos()

    fewer = assert_same(function, random(2, 3))
    assert operations(fewer) == ["sin.default", "view", "cos.default"]


def test_copies_that_change_the_layout_or_dtype_stay():
    def function(x):
        turned = x.t().contiguous()
        return turned.view(6), x.double() * 1, x.t().clone(), x[:1].expand(4, 3).contiguous()

    traced = make_fx(function)(random(2, 3))
    fewer = simplify(traced, (random(2, 3),))
    for found, expected in zip(fewer(TABLE), function(TABLE), strict=True):
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        assert torch.equal(found, expected)


def test_changes_in_place_are_respected():
    def function(x, y):
        before = x + 1
        total = torch.zeros_like(x)
        total.index_add_(0, torch.tensor([1, 0]), before)
        before.mul_(y)
        total[0] += before[1]
        return total + 1, x + 1, before, torch.zeros_like(x)

    assert_same(function, random(2, 3), random(2, 3))


def test_a_graph_that_changes_its_input_still_does():
    def function(x):
        x.add_(1)
        return (x * 2, x * 2)

    _, fewer = simplified(function, random(2, 3))
    x = torch.zeros(2, 3)
    assert torch.equal(fewer(x)[1], torch.full((2, 3), 2.0))
    assert torch.equal(x, torch.ones(2, 3))


def test_random_numbers_stay_random_and_apart():
    def function(x):
        return torch.rand(2, 3) + x, torch.rand(2, 3) + x

    _, fewer = simplified(function, TABLE)
    torch.manual_seed(0)
    first, second = fewer(TABLE)
    third, _ = fewer(TABLE)
    assert not torch.equal(first, second) and not torch.equal(first, third)
    torch.manual_seed(0)
    assert all(map(torch.equal, function(TABLE), (first, second)))
