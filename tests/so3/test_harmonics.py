import math

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from e2former_pyg.so3 import degree_index, solid_harmonics, spherical_harmonics

AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()
ZERO = torch.zeros(1, 3, dtype=torch.float64)


def vectors(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, dtype=torch.float64, generator=generator)


def e3nn(lmax, r, normalize, normalization="component"):
    return o3.spherical_harmonics(list(range(lmax + 1)), r, normalize, normalization)


@pytest.mark.parametrize("normalization", ["component", "norm", "integral"])
@pytest.mark.parametrize("lmax", range(9))
def test_values_match_e3nn(lmax, normalization):
    r = torch.cat([vectors(), 2.5 * AXES, 1e-3 * AXES])
    solid = solid_harmonics(lmax, r, normalization=normalization)
    sphere = spherical_harmonics(lmax, r, normalization=normalization)
    assert solid.shape == sphere.shape == (len(r), (lmax + 1) ** 2)
    for degree in range(lmax + 1):
        rows = slice(degree**2, (degree + 1) ** 2)
        expected = o3.spherical_harmonics(degree, r, False, normalization)
        error = (solid[:, rows] - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 1e-13
        expected = o3.spherical_harmonics(degree, r, True, normalization)
        assert (sphere[:, rows] - expected).norm() / expected.norm() < 1e-13


def test_degree_one_is_the_vector():
    r = vectors()
    torch.testing.assert_close(solid_harmonics(1, r)[:, 1:], math.sqrt(3) * r, rtol=0, atol=1e-15)
    assert torch.equal(
        solid_harmonics(1, r, normalization="norm")[:, 0], torch.ones(len(r)).double()
    )


def test_values_at_zero():
    expected = torch.zeros(1, 81, dtype=torch.float64)
    expected[:, 0] = 1.0
    assert torch.equal(solid_harmonics(8, ZERO), expected)
    assert torch.equal(spherical_harmonics(8, ZERO), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_of_the_dtype(dtype):
    tolerance = {torch.float32: 1e-6, torch.float64: 2e-15}[dtype]
    r = (4 * vectors(200)).to(dtype)
    found = solid_harmonics(8, r)
    assert found.dtype == dtype
    # float64 is held to its own value for float32, and to e3nn's polynomial for float64.
    expected = solid_harmonics(8, r.double()) if dtype == torch.float32 else e3nn(8, r, False)
    for degree in range(9):
        rows = slice(degree**2, (degree + 1) ** 2)
        error = (found[:, rows] - expected[:, rows]).norm() / expected[:, rows].norm()
        assert error < tolerance


@pytest.fixture
def float64_default():
    """e3nn builds the generators of its rotation matrices in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("function", [solid_harmonics, spherical_harmonics])
@pytest.mark.parametrize("lmax", [1, 3, 8])
def test_equivariance(function, lmax, float64_default):
    torch.manual_seed(0)
    r = torch.cat([vectors(), AXES, ZERO])
    for rotation in (o3.rand_matrix(), o3.matrix_x(torch.tensor(math.pi / 2))):
        d = [o3.Irrep(degree, 1).D_from_matrix(rotation) for degree in range(lmax + 1)]
        turned = function(lmax, r @ rotation.T)
        expected = function(lmax, r) @ torch.block_diag(*d).T
        assert (turned - expected).norm() / expected.norm() < 1e-13


def test_parity_and_homogeneity():
    r = torch.cat([vectors(), AXES, ZERO])
    degree = degree_index(8)
    values = solid_harmonics(8, r)
    assert torch.equal(solid_harmonics(8, -r), values * (-1.0) ** degree)
    assert torch.equal(solid_harmonics(8, 2 * r), values * 2.0**degree)
    torch.testing.assert_close(
        spherical_harmonics(8, 1e-6 * vectors()), spherical_harmonics(8, vectors())
    )


def test_solid_harmonics_are_harmonic():
    for r in torch.cat([vectors(3), AXES, ZERO]):
        hessian = torch.func.jacfwd(torch.func.jacrev(lambda v: solid_harmonics(8, v)))(r)
        laplacian = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert laplacian.abs().max() < 1e-13 * hessian.abs().max()


@pytest.mark.parametrize("lmax", [2, 4])
def test_solid_gradcheck(lmax):
    r = torch.cat([vectors(1), AXES[:3], ZERO]).requires_grad_()
    assert gradcheck(lambda r: solid_harmonics(lmax, r), r)
    assert gradgradcheck(lambda r: solid_harmonics(lmax, r), r)


def test_spherical_gradcheck():
    r = torch.cat([vectors(2), AXES[:3]]).requires_grad_()
    assert gradcheck(lambda r: spherical_harmonics(3, r), r)
    assert gradgradcheck(lambda r: spherical_harmonics(3, r), r)


def test_spherical_derivatives_at_zero_are_zero():
    r = torch.cat([ZERO, vectors(1)]).requires_grad_()
    (gradient,) = torch.autograd.grad(spherical_harmonics(8, r).pow(3).sum(), r, create_graph=True)
    # A constant in the gradient's square, so that the second derivative is not zero by chance.
    (second,) = torch.autograd.grad((gradient + 1).pow(2).sum(), r)
    assert torch.equal(gradient[0], torch.zeros(3).double())
    assert torch.equal(second[0], torch.zeros(3).double())
    assert gradient[1].norm() > 0 and second[1].norm() > 0
    assert gradient.isfinite().all() and second.isfinite().all()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3), (2, 5, 3)])
def test_leading_dimensions(shape):
    r = torch.randn(shape)
    found = solid_harmonics(3, r)
    assert found.shape == (*shape[:-1], 16)
    torch.testing.assert_close(found.reshape(-1, 16), solid_harmonics(3, r.reshape(-1, 3)))


def test_non_contiguous_input():
    r = vectors()
    assert torch.equal(solid_harmonics(4, r.T.contiguous().T), solid_harmonics(4, r))


def test_autocast_does_not_lower_the_precision():
    r = vectors().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = spherical_harmonics(4, r)
    assert torch.equal(found, spherical_harmonics(4, r))


def test_default_dtype_does_not_matter():
    r = vectors().float()
    expected = spherical_harmonics(7, r, normalization="norm")
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(spherical_harmonics(7, r, normalization="norm"), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def force_like(r):
    r = r.detach().requires_grad_()
    values = spherical_harmonics(3, r, normalization="norm")
    (gradient,) = torch.autograd.grad(values.pow(3).sum(), r, create_graph=True)
    return torch.autograd.grad(gradient.pow(2).sum(), r)[0]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    r = vectors().float()
    graph = make_fx(force_like, tracing_mode=mode)(r)
    torch.testing.assert_close(graph(r), force_like(r))
    if mode == "symbolic":
        torch.testing.assert_close(graph(r[:7]), force_like(r[:7]))


def test_compile_full_graph():
    def function(r):
        return spherical_harmonics(3, r, normalization="norm")

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    r = vectors().float().requires_grad_()
    torch.testing.assert_close(compiled(r), function(r))
    found, expected = (torch.autograd.grad(f(r).pow(3).sum(), r)[0] for f in (compiled, function))
    torch.testing.assert_close(found, expected)


# float16 is used nowhere else here: the tables for it are first built inside the mode.
def test_tables_built_in_inference_mode_serve_autograd():
    r = vectors().half()
    with torch.inference_mode():
        solid_harmonics(4, r)
    solid_harmonics(4, r.requires_grad_()).float().sum().backward()
    assert r.grad is not None and r.grad.abs().sum() > 0


def test_tables_built_in_a_transform_serve_eager_calls():
    r = vectors(4).bfloat16()
    torch.func.vmap(torch.func.grad(lambda v: solid_harmonics(4, v).sum()))(r)
    torch.testing.assert_close(
        solid_harmonics(4, r).double(), solid_harmonics(4, r.double()), rtol=0.1, atol=0.3
    )


def test_errors():
    r = vectors()
    for function in (solid_harmonics, spherical_harmonics):
        with pytest.raises(ValueError, match="`lmax` must be at most 8, found 9"):
            function(9, r)
        with pytest.raises(ValueError, match="`lmax` must be a non-negative integer, found -1"):
            function(-1, r)
        with pytest.raises(ValueError, match=r"`lmax` must be .* found 1\.5"):
            function(1.5, r)
        with pytest.raises(TypeError, match="`lmax` must be an integer, found str"):
            function("2", r)
        with pytest.raises(ValueError, match=r"`r` must have shape \[..., 3\], found \[5, 2\]"):
            function(2, torch.zeros(5, 2))
        with pytest.raises(ValueError, match=r"`r` must have shape \[..., 3\], found \[\]"):
            function(2, torch.tensor(1.0))
        with pytest.raises(
            TypeError, match=r"`r` must have a floating point dtype, found torch.int"
        ):
            function(2, torch.zeros(5, 3, dtype=torch.long))
        with pytest.raises(TypeError, match="`r` must be a tensor, found list"):
            function(2, [0.0, 0.0, 1.0])
        with pytest.raises(ValueError, match=r"`normalization` must be .* found 'unit'"):
            function(2, r, normalization="unit")
