"""The linear maps of degrees as kernels, interpreted where there is no GPU, beside PyTorch's."""

import os
from importlib.util import find_spec

import pytest
import torch

from e2former_pyg.functional.degree_linear import (
    _multiplies_tf32,
    degree_linear,
    degree_linear_torch,
)

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="tensors on the CPU need the interpreter"
)

# Paths of each degree, channels of a path and of the output.
SMALL = {
    "one path": ((1, 1, 1), 5, 7),
    "paths": ((2, 3), 3, 4),
    "a degree without paths": ((2, 0, 1), 17, 20),
    "scalars": ((3,), 4, 1),
    "blocks": ((1, 2), 70, 66),
}
LARGE = {**SMALL, "lmax 2": ((2, 4, 3), 128, 128), "lmax 6": ((1,) * 7, 32, 64)}


directions = pytest.mark.parametrize("transposed", [False, True], ids=["map", "transposed"])


def make_inputs(
    paths,
    in_channels,
    out_channels,
    nodes=9,
    device="cpu",
    dtype=torch.float32,
    transposed=False,
):
    generator = torch.Generator().manual_seed(0)
    rows = sum((2 * degree + 1) * count for degree, count in enumerate(paths))
    sides = (nodes, rows, in_channels), (nodes, len(paths) ** 2, out_channels)
    source, target = reversed(sides) if transposed else sides
    bias = paths[0] * in_channels if transposed else out_channels
    shapes = source, (sum(paths) * in_channels, out_channels), (bias,), target
    tensors = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in tensors]


def derivatives(function, inputs, paths, transposed=False):
    """Value, first and second derivatives, and those of the second ones by the features."""
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.randn(like.shape, generator=generator).bfloat16().to(like)

    x, weight, bias, addend = inputs
    value = function(x, weight, paths, bias, addend, transposed)
    cotangent = random(value).requires_grad_()
    first = torch.autograd.grad(value, inputs, cotangent, create_graph=True)
    results = [value, *first]
    leaves = [x, weight, cotangent]
    derived = first
    for _ in range(2):
        total = sum((tensor * random(tensor)).sum() for tensor in derived)
        derived = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
        results += derived
        if not any(tensor.requires_grad for tensor in derived):
            break
    return results


def compare(function, inputs, paths, limit, transposed=False):
    found = derivatives(function, inputs, paths, transposed)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = derivatives(degree_linear_torch, exact, paths, transposed)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == inputs[0].dtype
        assert (one.double() - other).norm() <= limit * other.norm()


def fused():
    from e2former_pyg.functional.triton_linear import degree_linear

    return degree_linear


@interpreted
@directions
@pytest.mark.parametrize("paths, in_channels, out_channels", SMALL.values(), ids=SMALL.keys())
def test_derivatives(paths, in_channels, out_channels, transposed):
    inputs = make_inputs(paths, in_channels, out_channels, transposed=transposed)
    compare(fused(), inputs, paths, 1e-6, transposed)


@pytest.mark.parametrize("paths, in_channels, out_channels", SMALL.values(), ids=SMALL.keys())
def test_transposed_is_the_adjoint(paths, in_channels, out_channels):
    x, weight, *_ = make_inputs(paths, in_channels, out_channels, dtype=torch.float64)
    y = make_inputs(paths, in_channels, out_channels, dtype=torch.float64, transposed=True)[0]
    forth = (degree_linear_torch(x, weight, paths) * y).sum()
    back = (degree_linear_torch(y, weight, paths, transposed=True) * x).sum()
    torch.testing.assert_close(forth, back)


def two_maps(with_input):
    """Two maps of one input; the second takes what the first one gives back."""

    def function(x, weight, paths, bias, addend, transposed):
        out, x = with_input(x, weight, paths, bias)
        return out.sin() * (x @ weight[: x.size(2)]).cos() + addend

    return function


@interpreted
def test_input_that_is_given_back():
    from e2former_pyg.functional.triton_linear import degree_linear_with_input

    inputs, paths = make_inputs((1, 1), 5, 7), (1, 1)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = derivatives(two_maps(degree_linear_with_input), inputs, paths)
    expected = derivatives(
        two_maps(lambda x, *others: (degree_linear_torch(x, *others), x)), exact, paths
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= 1e-6 * other.norm()
    # One of the two is enough.
    x, weight, bias, _ = inputs
    for n, alone in enumerate((degree_linear_torch(x, weight, paths, bias), x)):
        total = degree_linear_with_input(x, weight, paths, bias)[n].sum()
        (one,), (other,) = (torch.autograd.grad(t, x) for t in (total, alone.sum()))
        torch.testing.assert_close(one, other)


@interpreted
@directions
@pytest.mark.parametrize("paths, in_channels, out_channels", SMALL.values(), ids=SMALL.keys())
def test_numbers_of_any_size_can_be_split(paths, in_channels, out_channels, transposed):
    """The range of float16 is small, that of the errors is that of float32."""
    from e2former_pyg.kernels.degree_linear import SPLIT, rows

    x, weight, *_ = make_inputs(paths, in_channels, out_channels, 70, transposed=transposed)
    generator = torch.Generator().manual_seed(2)

    def sizes(count, largest):
        return 10.0 ** torch.randint(-largest, largest + 1, (count,), generator=generator)

    with torch.no_grad():
        x *= sizes(70, 15).view(-1, 1, 1)
        x[3] = 0
        weight *= sizes(len(weight), 8).view(-1, 1)
        weight[1] = 0
    found = rows(x, weight, None, None, paths, in_channels, transposed, SPLIT)
    exact = x.double(), weight.double()
    expected = degree_linear_torch(*exact, paths, transposed=transposed)
    # Of each sum the rounding errors of its summands.
    terms = degree_linear_torch(*(t.abs() for t in exact), paths, transposed=transposed)
    assert found.isfinite().all()
    assert ((found - expected).abs() <= 1e-6 * terms).all()


def test_addend_and_bias():
    x, weight, bias, addend = make_inputs((1, 1), 4, 3, dtype=torch.float64)
    plain = degree_linear_torch(x, weight, (1, 1))
    first = torch.zeros_like(plain)
    first[:, 0] = bias.detach()
    for given, expected in (
        ((bias,), plain + first),
        ((None, addend), plain + addend),
        ((bias, addend), plain + first + addend),
    ):
        torch.testing.assert_close(degree_linear_torch(x, weight, (1, 1), *given), expected)


@interpreted
def test_strided_and_more_than_a_block_of_nodes():
    x, weight, *rest = make_inputs((1, 1), 4, 3, nodes=150)
    strided = x.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert not strided.is_contiguous()
    compare(fused(), [strided, weight, *rest], (1, 1), 1e-6)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=interpreted)])
def test_no_nodes(backend):
    inputs = make_inputs((1, 2), 4, 3, nodes=0)
    function = degree_linear_torch if backend == "torch" else fused()
    value, grad_x, grad_weight, *_ = derivatives(function, inputs, (1, 2))
    assert value.shape == (0, 4, 3) and grad_x.shape == (0, 7, 4) and not grad_weight.any()


@interpreted
def test_operators_are_registered_properly():
    import e2former_pyg.functional.triton_linear  # noqa: F401

    x, weight, bias, addend = make_inputs((1, 2), 4, 3)
    back = make_inputs((1, 2), 4, 3, transposed=True)
    ops = torch.ops.e2former_pyg
    for operator, arguments in (
        (ops.degree_linear, (x, weight, bias, addend, [1, 2], 4, False)),
        (ops.degree_linear, (x, weight, None, None, [1, 2], 4, False)),
        (ops.degree_linear, (*back, [1, 2], 4, True)),
        (ops.degree_linear_weight, (x, back[0], [1, 2], 4)),
    ):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.cuda
@directions
@pytest.mark.parametrize("paths, in_channels, out_channels", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(paths, in_channels, out_channels, dtype, transposed):
    """Float32 is as exact as it can be, although the kernels multiply TF32 numbers."""
    inputs = make_inputs(paths, in_channels, out_channels, 1000, "cuda", dtype, transposed)
    limit = 1e-6 if dtype == torch.float32 else 1e-2
    compare(degree_linear, inputs, paths, limit, transposed)


@pytest.mark.cuda
@directions
@pytest.mark.parametrize("paths, in_channels, out_channels", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("change", [-1, 0], ids=["few", "many"])
def test_number_of_nodes_on_a_gpu(change, paths, in_channels, out_channels, transposed):
    """Many nodes have matrices that are split beforehand."""
    from e2former_pyg.kernels.degree_linear import _MANY, SPLIT, exact_products

    nodes = _MANY + change
    assert (exact_products(nodes, transposed) == SPLIT) == (change == 0)
    inputs = make_inputs(paths, in_channels, out_channels, nodes, "cuda", transposed=transposed)
    compare(degree_linear, inputs, paths, 1e-6, transposed)


@pytest.mark.cuda
@pytest.mark.parametrize("nodes", [100, 3000])
def test_modules_on_a_gpu(nodes):
    """Rows of higher degrees that are not read, and an input that is given back."""
    from e2former_pyg.nn import DegreeLinear

    torch.manual_seed(0)
    first, second = DegreeLinear(48, 64, 2), DegreeLinear(48, 64, 1, lmax_in=2)
    x, root = torch.randn(nodes, 9, 48), torch.randn(nodes, 4, 64)

    def gradients(device, dtype):
        modules = [module.to(device, dtype) for module in (first, second)]
        inputs = [t.detach().to(device, dtype).requires_grad_() for t in (x, root)]
        out, given = modules[0](inputs[0], with_input=True)
        value = out[:, :4] * modules[1](given, inputs[1])
        weights = [module.weight for module in modules]
        (grad,) = torch.autograd.grad(value.square().sum(), inputs[0], create_graph=True)
        return [value, grad, *torch.autograd.grad(grad.square().sum(), [*inputs, *weights])]

    found, expected = gradients("cuda", torch.float32), gradients("cpu", torch.float64)
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().double() - other).norm() <= 2e-6 * other.norm()


@pytest.mark.cuda
def test_tf32_on_request():
    x, weight, bias = make_inputs((1, 1, 1), 64, 64, 100, "cuda")[:3]
    exact = degree_linear_torch(x.double(), weight.double(), (1, 1, 1), bias.double())
    before = torch.backends.cuda.matmul.allow_tf32
    errors = []
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            value = degree_linear(x, weight, (1, 1, 1), bias)
            errors.append(float((value - exact).norm() / exact.norm()))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert errors[0] < 1e-6 and 1e-5 < errors[1] < 1e-3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_autocast_does_not_round_what_is_added(device, with_bias):
    x, weight, bias, addend = make_inputs((1, 1), 16, 8, 50, device)
    bias = bias if with_bias else None
    with torch.autocast(device, torch.bfloat16):
        value = degree_linear(x, weight, (1, 1), bias, addend)
        without = degree_linear(x, weight, (1, 1), bias)
    assert without.dtype == torch.bfloat16 and value.dtype == torch.float32
    torch.testing.assert_close(value, without + addend, rtol=0, atol=0)


@pytest.mark.cuda
def test_autocast():
    x, weight, bias = make_inputs((1, 1), 16, 8, 50, "cuda")[:3]
    with torch.autocast("cuda", torch.bfloat16):
        value = degree_linear(x, weight, (1, 1), bias)
    assert value.dtype == torch.bfloat16
    expected = degree_linear_torch(x, weight, (1, 1), bias)
    assert (value - expected).norm() < 1e-2 * expected.norm()
    assert all(
        grad.dtype == torch.float32
        for grad in torch.autograd.grad(value.float().sum(), (x, weight, bias))
    )


@pytest.mark.cuda
def test_autocast_leaves_float64_alone():
    inputs = make_inputs((1, 1), 16, 8, 50, "cuda", torch.float64)
    with torch.autocast("cuda", torch.bfloat16):
        value = degree_linear(*inputs[:2], (1, 1), *inputs[2:])
    assert value.dtype == torch.float64


@pytest.mark.parametrize("capability, expected", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_older_cards_take_pytorch(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _multiplies_tf32(torch.device("cuda:0")) == expected


@pytest.mark.cuda
def test_repeated_runs_are_equal_bit_by_bit():
    inputs = make_inputs((2, 4, 3), 128, 128, 3000, "cuda")
    first, second = (derivatives(degree_linear, inputs, (2, 4, 3)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
