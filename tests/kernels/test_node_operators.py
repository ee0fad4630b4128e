"""What else is done node by node or for pairs of elements, as kernels beside PyTorch's way."""

import os
from importlib.util import find_spec

import pytest
import torch

from e2former_pyg.functional.degree_products import degree_products, degree_products_torch
from e2former_pyg.functional.gated_linear import gate_torch, gated_linear, scalars_gates_rows
from e2former_pyg.functional.node_norm import normalize, normalize_torch, normalize_with_input
from e2former_pyg.radial import RadialSplines
from e2former_pyg.so3 import degree_index

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="tensors on the CPU need the interpreter"
)
gpu = pytest.param("cuda", marks=pytest.mark.cuda)
devices = pytest.mark.parametrize("device", [pytest.param("cpu", marks=interpreted), gpu])


def derivatives(function, x, levels=3):
    """The value, and derivatives by the input and by cotangents, one after the other."""
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.randn(like.shape, generator=generator).to(like)

    results = [function(x)]
    leaves = [x]
    for _ in range(levels):
        cotangents = [random(out).requires_grad_() for out in results[-len(leaves) :]]
        grads = torch.autograd.grad(
            results[-len(leaves) :], leaves, cotangents, create_graph=True, materialize_grads=True
        )
        results += grads
    return results


def compare(found, expected, limit):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= limit * other.norm()


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 9, 6), (7, 1, 2), (300, 4, 130), (0, 4, 2)], ids=str)
def test_products(device, dtype, shape):
    from e2former_pyg.functional.triton_products import degree_products as fused

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    found = derivatives(fused, strided)
    exact = x.double().requires_grad_()
    # The PyTorch way stops at the second derivative.
    expected = derivatives(degree_products_torch, exact, 2)
    assert found[0].dtype == dtype
    compare(found[: len(expected)], expected, 1e-6 if dtype == torch.float32 else 1e-13)


@devices
def test_third_derivatives_of_products(device):
    """Which the PyTorch way does not have."""
    from e2former_pyg.functional.triton_products import degree_products as fused

    x = torch.randn(2, 4, 4, dtype=torch.float64, device=device, requires_grad=True)

    def gradient(x):
        return torch.autograd.grad(fused(x).pow(3).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, x)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 1, 4, 2), (0, 0, 5, 2)], ids=str)
def test_polynomials(device, dtype, shape):
    from e2former_pyg.functional.triton_polynomials import cell_polynomials

    arithmetic = torch.promote_types(dtype, torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def fused(coefficients):
        return cell_polynomials(coefficients, 2, arithmetic)

    def plain(coefficients):
        nobody = coefficients.new_zeros(0, dtype=torch.long)
        splines = RadialSplines(coefficients, nobody, nobody, 3.0)
        rows = splines.cell_polynomials().unflatten(-1, (-1, 2))
        return rows.permute(0, 1, 2, 5, 4, 3)

    found = derivatives(fused, x.requires_grad_())
    expected = derivatives(plain, x.detach().double().requires_grad_())
    assert found[0].dtype == arithmetic and found[1].dtype == dtype
    limit = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    compare(found, expected, limit)


def second_order(function, *inputs):
    """The value, first derivatives, and those of a random combination of them by everything."""
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.randn(like.shape, generator=generator).to(like)

    out = function(*inputs)
    weight = random(out).requires_grad_()
    first = torch.autograd.grad(out, inputs, weight, create_graph=True, materialize_grads=True)
    cotangents = [random(grad) for grad in first]
    return [out, *first, *torch.autograd.grad(first, (*inputs, weight), cotangents)]


LIMITS = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2}
shapes = pytest.mark.parametrize(
    "shape", [(5, 9, 6), (7, 1, 3), (9, 4, 130), (3, 49, 20), (0, 4, 2)], ids=str
)


@devices
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@shapes
def test_normalize(device, dtype, shape):
    from e2former_pyg.functional.triton_norm import normalize as fused

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    x[:1] *= 1e-3  # where eps is most of the norm
    strided = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    exact = x.double().requires_grad_()
    found = second_order(lambda x: fused(x, 1e-5), strided)
    expected = second_order(lambda x: normalize_torch(x, 1e-5), exact)
    assert {value.dtype for value in found} == {dtype}
    compare(found, expected, LIMITS[dtype])


def beside_the_input(function):
    """A function of what a residual connection reads."""

    def joined(x):
        out, same = function(x, 1e-5)
        return torch.cat([out * same, same.square(), out], dim=1)

    return joined


@devices
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@shapes
def test_normalize_with_input(device, dtype, shape):
    from e2former_pyg.functional.triton_norm import normalize_with_input as fused

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    exact = x.double().requires_grad_()
    found = second_order(beside_the_input(fused), strided)
    expected = second_order(beside_the_input(lambda x, eps: (normalize_torch(x, eps), x)), exact)
    assert {value.dtype for value in found} == {dtype}
    compare(found, expected, 3 * LIMITS[dtype])


@pytest.mark.parametrize("shape", [(5, 9, 6), (1, 1, 1), (0, 4, 2)], ids=str)
def test_normalize_with_input_in_pytorch(shape):
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()

    def plain(x, eps):
        lmax = round(x.size(1) ** 0.5) - 1
        degree = degree_index(lmax, x.device).view(-1, 1)
        squares = x.square() / ((2 * degree + 1) * (lmax + 1) * x.size(2))
        return x / (squares.sum(dim=(1, 2), keepdim=True) + eps).sqrt(), x

    found = second_order(beside_the_input(normalize_with_input), x)
    compare(found, second_order(beside_the_input(plain), x), 1e-12)


@devices
@pytest.mark.parametrize("used", [0, 1])
def test_normalize_with_input_of_which_one_is_used(device, used):
    from e2former_pyg.functional.triton_norm import normalize_with_input as fused

    x = torch.randn(5, 4, 6, device=device, requires_grad=True)
    (found,) = torch.autograd.grad(fused(x, 1e-5)[used].pow(3).sum(), x)
    (expected,) = torch.autograd.grad((normalize_torch(x, 1e-5), x)[used].pow(3).sum(), x)
    torch.testing.assert_close(found, expected)


def gate_joined(x):
    """The PyTorch way, on scalars, gates and other rows one below the other."""
    lmax = round((x.size(1) + 1.25) ** 0.5 - 1.5)
    scalars, gates, rows = x.split([1, lmax, x.size(1) - 1 - lmax], dim=1)
    return gate_torch(torch.cat([scalars, rows], dim=1), gates.flatten(1))


@devices
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@shapes
def test_gate(device, dtype, shape):
    from e2former_pyg.functional.triton_gate import gate as fused

    nodes, rows, channels = shape
    lmax = round(rows**0.5) - 1
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(nodes, lmax + rows, channels, generator=generator).to(device, dtype)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    found = second_order(lambda x: fused(x, lmax), strided)
    expected = second_order(gate_joined, x.double().requires_grad_())
    assert found[0].shape == shape and {value.dtype for value in found} == {dtype}
    compare(found, expected, LIMITS[dtype])


@devices
def test_gates_far_from_zero(device):
    """Neither overflow nor NaN where the sigmoid is 0 or 1."""
    from e2former_pyg.functional.triton_gate import gate as fused

    x = torch.tensor([-1e4, -100.0, 100.0, 1e4], device=device).expand(1, 5, 4)
    found = second_order(lambda x: fused(x, 1), x.clone().requires_grad_())
    expected = second_order(gate_joined, x.double().requires_grad_())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-30)


def make_gated_linear(lmax, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, (lmax + 1) ** 2, 5), (lmax + 1, 5, 3), (3,)]
    shapes += [(lmax * 3, 5), (lmax * 3,)] if lmax > 0 else []
    tensors = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("lmax", [0, 1, 2])
def test_one_map_gives_rows_and_gates(lmax):
    inputs = make_gated_linear(lmax, torch.float64)

    def joined(x, weight, bias, *gates):
        rows = scalars_gates_rows(x, weight, bias, *(gates or [None, None]))
        assert rows.shape == (7, lmax + (lmax + 1) ** 2, 3)
        return gate_joined(rows)

    def apart(x, weight, bias, *gates):
        return gated_linear(x, weight, bias, *(gates or [None, None]))

    compare(second_order(joined, *inputs), second_order(apart, *inputs), 1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("lmax", [0, 2])
def test_gated_linear_on_a_gpu(lmax, dtype):
    inputs = make_gated_linear(lmax, dtype, "cuda")
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in inputs]

    def function(x, weight, bias, *gates):
        return gated_linear(x, weight, bias, *(gates or [None, None]))

    found, expected = second_order(function, *inputs), second_order(function, *exact)
    assert {value.dtype for value in found} == {dtype}
    limit = 10 * LIMITS[dtype]
    compare([value.cpu() for value in found], expected, limit)


@devices
def test_third_derivatives_are_refused(device):
    from e2former_pyg.functional.triton_gate import gate as fused_gate
    from e2former_pyg.functional.triton_norm import normalize as fused_normalize

    x = torch.randn(2, 4, 3, device=device, requires_grad=True)
    joined = torch.randn(2, 5, 3, device=device, requires_grad=True)
    for leaf, out in ((x, fused_normalize(x, 1e-5)), (joined, fused_gate(joined, 1))):
        (first,) = torch.autograd.grad(out.pow(2).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="second order"):
            torch.autograd.grad(second.sum(), leaf)


@interpreted
def test_operators_are_registered_properly():
    import e2former_pyg.functional.triton_gate
    import e2former_pyg.functional.triton_norm
    import e2former_pyg.functional.triton_polynomials
    import e2former_pyg.functional.triton_products  # noqa: F401

    x, y = (torch.randn(5, 4, 6, requires_grad=True) for _ in range(2))
    joined = torch.randn(5, 5, 6, requires_grad=True)
    sums = torch.randn(5, 6, requires_grad=True)
    coefficients = torch.randn(2, 1, 5, 6, requires_grad=True)
    polynomials = torch.randn(2, 1, 2, 2, 3, 4, requires_grad=True)
    ops = torch.ops.e2former_pyg
    for operator, arguments in (
        (ops.degree_products, (x,)),
        (ops.degree_products_sum, (x, y)),
        (ops.degree_products_spread, (sums, x)),
        (ops.normalize, (x, 1e-5)),
        (ops.normalize_backward, (x, y, None, 1e-5)),
        (ops.normalize_backward, (x, y, x.detach().requires_grad_(), 1e-5)),
        (ops.gate, (joined, 1)),
        (ops.gate_backward, (joined, x, 1)),
        (ops.cell_polynomials, (coefficients, 2, torch.float64)),
        (ops.cell_polynomials_transposed, (polynomials, torch.float32)),
    ):
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.cuda
def test_cuda_tensors_take_the_kernel():
    x = torch.randn(5, 4, 6, device="cuda", requires_grad=True)
    assert "degree_products" in type(degree_products(x).grad_fn).__name__
    assert "normalize" in type(normalize(x, 1e-5).grad_fn).__name__
    assert (
        "gate" in type(gated_linear(*make_gated_linear(1, torch.float32, "cuda")).grad_fn).__name__
    )
