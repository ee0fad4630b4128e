"""Low precision, large coordinates, and smoothness at the cutoff."""

import pytest
import torch

KINDS = pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])


def large_case(reference, convolution, **options):
    return reference.make_case(
        nodes=12,
        edges=80,
        orders=(0, 1, 2),
        groups=4,
        channels=8,
        convolution=convolution,
        **options,
    )


def by_positions(case):
    """Values and forces."""
    case, inputs = case.leaves()
    out = case.run()
    return out, torch.autograd.grad(out.square().sum(), inputs["pos"])[0]


@KINDS
@pytest.mark.parametrize("seed", range(4))
def test_float32(reference, convolution, seed):
    case = large_case(reference, convolution, seed=seed, bias=True, shift=True)
    exact = case.map(lambda tensor: tensor.float().double())
    single = case.map(torch.Tensor.float)
    assert single.run().dtype == torch.float32
    for found, expected in zip(by_positions(single), by_positions(exact), strict=True):
        assert found.dtype == torch.float32
        assert reference.error(found, expected) < 2e-6


@KINDS
def test_float32_features_far_from_the_origin(reference, convolution):
    case = large_case(reference, convolution)
    offset = torch.tensor([1e4, -2e4, 3e4], dtype=torch.float64)
    single = case.map(torch.Tensor.float)
    moved = single.replace(pos=case.pos + offset)
    exact = single.map(torch.Tensor.double).replace(pos=case.pos)
    for found, expected in zip(by_positions(moved), by_positions(exact), strict=True):
        assert reference.error(found, expected) < 2e-6
    assert moved.run().dtype == torch.float32
    assert by_positions(moved)[1].dtype == torch.float64


@KINDS
def test_float64_far_from_the_origin(reference, convolution):
    case = large_case(reference, convolution)
    moved = case.replace(pos=case.pos + 1e4)
    assert reference.error(moved.run(), case.run()) < 1e-9


@KINDS
def test_bfloat16_features(reference, convolution):
    case = large_case(reference, convolution, directional=None if convolution else 1)
    half = case.replace(v=case.v.bfloat16(), pos=case.pos.float())
    if not convolution:
        half = half.replace(q=case.q.bfloat16(), k=case.k.bfloat16(), u=case.u.bfloat16())
    out, force = by_positions(half)
    assert out.dtype == torch.bfloat16
    assert force.dtype == torch.float32
    assert reference.error(out, case.run()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [300.0, -300.0, 2e4, -2e4])
def test_extreme_logits(reference, dtype, logit):
    case = large_case(reference, False, bias=True)
    case.edge_bias[::3] += logit
    case, inputs = case.map(lambda tensor: tensor.to(dtype)).leaves()
    out = case.run()
    first = torch.autograd.grad(out.square().sum(), [inputs["pos"], inputs["v"]], create_graph=True)
    loss = sum(grad.square().sum() for grad in first)
    second = torch.autograd.grad(loss, list(inputs.values()))
    assert all(torch.isfinite(tensor).all() for tensor in (out, *first, *second))
    if abs(logit) == 300.0:  # the definition without a shift holds it in float64
        exact = case.map(lambda tensor: tensor.detach().double())
        tolerance = 1e-4 if dtype == torch.float32 else 1e-11
        assert reference.error(out, reference.naive(exact)) < tolerance


# The cutoff ##################################################################


def crossing(reference, convolution, neighbours):
    """A function of the distance of one neighbour: the only one, the one with the largest logit,
    or one of many. It returns outputs, forces, and the derivative of a function of the forces.
    """
    case = reference.make_case(convolution=convolution, nodes=3, sources=12)
    count = 12 if neighbours == "many" else 1
    if neighbours == "largest":
        count = 4
    index = torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)])
    case = case.replace(edge_index=index)
    if not convolution:
        logits = torch.zeros(count, 2, dtype=torch.float64)
        if neighbours == "largest":
            logits[0] = 12.0
        case = case.replace(edge_bias=logits)
    direction = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)

    def evaluate(distance):
        source, target = (part.clone() for part in case.pos)
        source[0] = target[0] - distance * direction
        moved, inputs = case.replace(pos=(source, target)).leaves()
        names = ["pos[0]", "pos[1]", "v"]
        out = moved.run()
        first = torch.autograd.grad(
            out.square().sum(), [inputs[name] for name in names], create_graph=True
        )
        second = torch.autograd.grad(
            sum((grad * (grad + 0.1)).sum() for grad in first), [inputs[name] for name in names]
        )
        return [out], first, second

    return evaluate, case.cutoff


@KINDS
@pytest.mark.parametrize("neighbours", ["only", "largest", "many"])
def test_two_continuous_derivatives_at_the_cutoff(reference, convolution, neighbours):
    evaluate, cutoff = crossing(reference, convolution, neighbours)
    inside, outside = evaluate(cutoff - 1e-8), evaluate(cutoff + 1e-8)
    for order, tolerance in enumerate((1e-7, 1e-7, 1e-3)):
        for left, right in zip(inside[order], outside[order], strict=True):
            scale = 1 + right.abs().max()
            assert (left - right).abs().max() < tolerance * scale, order
    # The same neighbour matters further in, where the same bounds are missed by far.
    nearer = evaluate(0.8 * cutoff)
    for order in range(3):
        assert any(
            (left - right).abs().max() > 1e-3
            for left, right in zip(nearer[order], outside[order], strict=True)
        )


@KINDS
def test_a_single_neighbour_fades_to_zero(reference, convolution):
    evaluate, cutoff = crossing(reference, convolution, "only")
    sizes = [float(evaluate(cutoff - gap)[0][0].detach().norm()) for gap in (1e-1, 1e-2, 1e-3)]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert sizes[2] < 1e-5
    assert not evaluate(cutoff)[0][0].any()
