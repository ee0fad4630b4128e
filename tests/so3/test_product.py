"""The product with the harmonics of one vector per node, in its frame and densely."""

import math

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck

from e2former_pyg.functional import coupling
from e2former_pyg.so3 import axis_aligned_product
from e2former_pyg.so3.aligned_product import signed_index
from e2former_pyg.so3.frames import aligning_rotation, rotation_matrices
from e2former_pyg.so3.paths import Path
from e2former_pyg.so3.product import costs, path_rows, product_paths

METHODS = pytest.mark.parametrize("method", ["aligned", "dense"])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def vectors():
    """Random ones, zero, both directions of each axis, tiny ones, and the border of the charts."""
    axes = torch.eye(3, dtype=torch.float64)
    border = torch.tensor([[0.6, 0.0, -0.8], [0.6, 1e-9, 0.8], [0.6, -1e-9, 0.8]]).double()
    near = torch.tensor([[1e-7, -1.0, 0.0], [1e-200, 2e-200, -1e-200]]).double()
    return torch.cat([random(6, 3), torch.zeros(1, 3), 1.5 * axes, -0.7 * axes, border, near])


def make_weight(lmax_in, lmax, orders, channels, out_channels, parity="so3"):
    counts = coupling(lmax_in, lmax, orders, parity).paths_per_degree
    return [
        random(count * channels, out_channels, seed=7 + degree)
        for degree, count in enumerate(counts)
    ]


def naive(x, r, lmax, orders, parity="so3"):
    """Path by path, with e3nn's harmonics and coefficients."""
    paths = coupling(math.isqrt(x.size(1)) - 1, lmax, orders, parity)
    out = torch.zeros(x.size(0), paths.num_rows, x.size(2), dtype=torch.float64)
    for path in paths.paths:
        l1, order, l3 = path
        y = o3.spherical_harmonics(order, r, normalize=False, normalization="component")
        table = o3.wigner_3j(l1, order, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
        values = x[:, l1 * l1 : (l1 + 1) ** 2]
        out[:, list(paths.row_of(path))] = torch.einsum("nac,nb,abk->nkc", values, y, table)
    return out


def naive_mixed(x, r, lmax, orders, weight, parity="so3"):
    rows = naive(x, r, lmax, orders, parity)
    paths = coupling(math.isqrt(x.size(1)) - 1, lmax, orders, parity)
    out = torch.zeros(x.size(0), (lmax + 1) ** 2, weight[0].size(1), dtype=torch.float64)
    for degree, matrix in enumerate(weight):
        mine = [path for path in paths.paths if path.degree_out == degree]
        for n, path in enumerate(mine):
            part = matrix.view(len(mine), x.size(2), -1)[n]
            out[:, degree**2 : (degree + 1) ** 2] += rows[:, list(paths.row_of(path))] @ part
    return out


# Frames ######################################################################


def test_frames_bring_vectors_to_the_axis():
    r = vectors()
    length, matrix = aligning_rotation(r)
    turned = torch.einsum("nij,nj->ni", matrix, r)
    expected = torch.zeros_like(r)
    expected[:, 1] = length
    assert (turned - expected).abs().max() < 1e-15
    torch.testing.assert_close(length, r.norm(dim=-1), rtol=1e-15, atol=1e-300)
    identity = torch.eye(3, dtype=torch.float64).expand_as(matrix)
    assert (matrix @ matrix.transpose(1, 2) - identity).abs().max() < 1e-15
    assert (torch.linalg.det(matrix) - 1).abs().max() < 1e-15


def test_rotation_matrices_are_those_of_the_harmonics():
    r, points = vectors(), random(15, 3, seed=3)
    matrix = aligning_rotation(r)[1]
    for degree, found in enumerate(rotation_matrices(12, matrix)):
        if degree > 11:  # as far as e3nn's harmonics go
            break
        y = [
            o3.spherical_harmonics(degree, p, normalize=True)
            for p in (points, points @ matrix.transpose(1, 2))
        ]
        turned = torch.einsum("nij,pj->npi", found, y[0])
        assert (turned - y[1]).abs().max() < 1e-12, degree


def test_frames_are_the_same_each_time():
    r = vectors()
    state = torch.get_rng_state()
    first, second = (aligning_rotation(r)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


# Sparsity ####################################################################

# Paths whose coefficients vanish beyond the rule, and how many are left.
ACCIDENTS = {
    (3, 2, 3): 5,
    (3, 6, 5): 5,
    (4, 4, 6): 7,
    (4, 5, 6): 6,
    (5, 6, 3): 5,
    (6, 3, 6): 10,
    (6, 4, 4): 7,
    (6, 5, 4): 6,
}


def on_axis(l1, order, l3):
    """e3nn's coefficients with the harmonics of the polar axis, ``[m1, m3]``."""
    axis = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    y = o3.spherical_harmonics(order, axis, normalize=True, normalization="component")
    table = o3.wigner_3j(l1, order, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
    return torch.einsum("abk,b->ak", table, y)


def test_one_input_for_each_output():
    """In the frame m3 comes from m1 = m3 if l1 + l2 + l3 is even, from -m3 if it is odd."""
    for path in product_paths(6, 6, tuple(range(7)), "so3").paths:
        l1, _, l3 = path
        expected = on_axis(*path)
        expected[expected.abs() < 1e-12] = 0
        found = torch.zeros_like(expected)
        for m3, (m1, value) in enumerate(signed_index(Path(*path))):
            found[m1, m3] = value
        assert (found - expected).abs().max() < 1e-13, path
        sign = 1 if sum(path) % 2 == 0 else -1
        for m1, m3 in expected.nonzero().tolist():
            assert m1 - l1 == sign * (m3 - l3)
        count = 2 * min(l1, l3) + 1 if sign == 1 else 2 * min(l1, l3)
        assert expected.count_nonzero() == ACCIDENTS.get(tuple(path), count), path


# Paths, nonzero coefficients of the full tables, and of the signed re-index.
COUNTS = {
    (2, (1,)): (6, 50, 14),
    (3, (1,)): (9, 118, 30),
    (4, (1,)): (12, 216, 52),
    (6, (1,)): (18, 502, 114),
    (2, (0, 1, 2)): (15, 137, 37),
    (3, tuple(range(4))): (34, 611, 111),
    (4, tuple(range(5))): (65, 2052, 272),
    (6, tuple(range(7))): (175, 11896, 1036),
}


@pytest.mark.parametrize("lmax, orders", COUNTS, ids=str)
def test_counts(lmax, orders):
    paths = product_paths(lmax, lmax, orders, "so3").paths
    full = sum(
        int((o3.wigner_3j(*path, dtype=torch.float64).abs() > 1e-12).sum()) for path in paths
    )
    sparse = sum(value != 0 for path in paths for _, value in signed_index(path))
    assert (len(paths), full, sparse) == COUNTS[lmax, orders]


# Values ######################################################################

SETS = [(0,), (1,), (0, 1), (2,), (0, 1, 2), (3,), (1, 4), (6,)]


@METHODS
@pytest.mark.parametrize("orders", SETS, ids=str)
@pytest.mark.parametrize("lmax_in, lmax", [(0, 6), (2, 2), (3, 1), (2, 5)])
def test_values(reference, method, orders, lmax_in, lmax):
    r = vectors()
    x = random(r.size(0), (lmax_in + 1) ** 2, 3, seed=1)
    try:
        coupling(lmax_in, lmax, orders)
    except ValueError:
        with pytest.raises(ValueError, match="no coupling path"):
            axis_aligned_product(x, r, orders, lmax, method=method)
        return
    found = axis_aligned_product(x, r, orders, lmax, method=method)
    assert reference.error(found, naive(x, r, lmax, orders)) < 1e-13
    weight = make_weight(lmax_in, lmax, orders, 3, 2)
    found = axis_aligned_product(x, r, orders, lmax, weight=weight, method=method)
    assert reference.error(found, naive_mixed(x, r, lmax, orders, weight)) < 1e-13


@METHODS
def test_highest_degrees(reference, method):
    x, r = random(5, 49, 2, seed=1), random(5, 3)
    orders = tuple(range(7))
    found = axis_aligned_product(x, r, orders, method=method)
    assert reference.error(found, naive(x, r, 6, orders)) < 1e-13


@METHODS
def test_rows_by_input(reference, method):
    """The same rows: by input degree, then path, then m3."""
    paths = product_paths(3, 2, (1, 2), "so3")
    x, r = random(5, 16, 2, seed=1), random(5, 3)
    found = path_rows(paths, x, r, method, by_input=True)
    rows = naive(x, r, 2, (1, 2))
    order = sorted(paths.paths, key=lambda path: path.degree_in)
    expected = torch.cat([rows[:, list(paths.row_of(path))] for path in order], dim=1)
    assert reference.error(found, expected) < 1e-13


@METHODS
def test_parity(reference, method):
    x, r = random(5, 9, 2, seed=1), random(5, 3)
    found = axis_aligned_product(x, r, (0, 1, 2), parity="o3", method=method)
    assert reference.error(found, naive(x, r, 2, (0, 1, 2), "o3")) < 1e-13
    mirrored = x.clone()
    mirrored[:, 1:4] *= -1
    rows = axis_aligned_product(mirrored, -r, (0, 1, 2), parity="o3", method=method)
    paths = coupling(2, 2, (0, 1, 2), "o3")
    signs = torch.ones(paths.num_rows, dtype=torch.float64)
    for path in paths.paths:
        signs[list(paths.row_of(path))] = (-1.0) ** path.degree_out
    assert reference.error(rows, signs.view(1, -1, 1) * found) < 1e-13


def test_scale_of_each_order(reference):
    x, r = random(4, 9, 2, seed=1), random(4, 3)
    for order in range(4):
        once = axis_aligned_product(x, r, order, method="aligned")
        assert reference.error(axis_aligned_product(x, 3 * r, order), 3**order * once) < 1e-14


# Derivatives #################################################################


@METHODS
@pytest.mark.parametrize("orders", [(1,), (2,), (0, 1, 2), (3,)], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients(method, orders, mixed):
    """Also at zero, along every axis and where the charts meet."""
    r = torch.cat([vectors()[4:14], torch.zeros(1, 3).double()])
    x = random(r.size(0), 4, 2, seed=1).requires_grad_()
    weight = make_weight(1, 2, orders, 2, 1) if mixed else []
    inputs = (x, r.requires_grad_(), *(matrix.requires_grad_() for matrix in weight))

    def function(x, r, *weight):
        return axis_aligned_product(x, r, orders, 2, weight=weight or None, method=method)

    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)
    single = (x[:3].detach().requires_grad_(), torch.zeros(3, 3).double().requires_grad_())
    assert gradcheck(function, (*single, *weight))
    assert gradgradcheck(function, (*single, *weight))


def derivatives(function, *inputs):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    cotangent = random(*out.shape, seed=9).requires_grad_()
    first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
    loss = sum((grad * (grad + 0.3)).sum() for grad in first)
    return [out, *first, *torch.autograd.grad(loss, [cotangent, *inputs], materialize_grads=True)]


@pytest.mark.parametrize("mixed", [False, True])
def test_derivatives_of_both_methods_agree(reference, mixed):
    """To second order, where e3nn's polynomials are differentiated by autograd."""
    orders, r = (0, 1, 3), vectors()
    x = random(r.size(0), 9, 2, seed=1)
    weight = make_weight(2, 3, orders, 2, 3) if mixed else []

    def product(method):
        return derivatives(
            lambda x, r, *weight: axis_aligned_product(
                x, r, orders, 3, weight=weight or None, method=method
            ),
            *(x, r, *weight),
        )

    def expected(x, r, *weight):
        return naive_mixed(x, r, 3, orders, weight) if mixed else naive(x, r, 3, orders)

    wanted = derivatives(expected, x, r, *weight)
    for method in ("aligned", "dense"):
        for found, want in zip(product(method), wanted, strict=True):
            assert reference.error(found, want) < 1e-12


@METHODS
def test_derivatives_of_some_inputs(reference, method):
    """What nobody asks for is not needed."""
    x, r, weight = random(4, 9, 2, seed=1), random(4, 3), make_weight(2, 2, (0, 1), 2, 2)
    r.requires_grad_()
    out = axis_aligned_product(x, r, (0, 1), weight=weight, method=method)
    (force,) = torch.autograd.grad(out.square().sum(), r, create_graph=True)
    (found,) = torch.autograd.grad(force.square().sum(), r)
    wanted = naive_mixed(x, r, 2, (0, 1), weight)
    (force,) = torch.autograd.grad(wanted.square().sum(), r, create_graph=True)
    assert reference.error(found, torch.autograd.grad(force.square().sum(), r)[0]) < 1e-12


# Options #####################################################################


def test_cost_rule():
    """Few paths and path rows go to the dense product, many mixed paths to the frame."""

    def choice(lmax, orders, channels, mixed):
        found = costs(product_paths(lmax, lmax, orders, "so3"), channels, mixed)
        return min(found, key=found.get)

    assert choice(2, (1,), 128, 128) == "dense"
    assert choice(2, (1,), 128, None) == "dense"
    assert choice(6, tuple(range(7)), 128, None) == "dense"
    assert choice(4, tuple(range(5)), 128, 128) == "aligned"
    assert choice(6, tuple(range(7)), 128, 128) == "aligned"


def test_auto_takes_what_the_rule_says():
    x, r = random(3, 49, 64, seed=1), random(3, 3)
    weight = make_weight(6, 6, tuple(range(7)), 64, 8)
    found, aligned = (
        axis_aligned_product(x, r, range(7), weight=weight, method=method)
        for method in ("auto", "aligned")
    )
    assert torch.equal(found, aligned)
    found, dense = (axis_aligned_product(x, r, 1, method=method) for method in ("auto", "dense"))
    assert torch.equal(found, dense)


@METHODS
def test_precision_and_sizes(reference, method):
    x, r = random(20, 16, 4, seed=1), random(20, 3)
    exact = axis_aligned_product(x, r, (0, 1, 2, 3), method=method)
    found = axis_aligned_product(x.float(), r.float(), (0, 1, 2, 3), method=method)
    assert found.dtype == torch.float32
    assert reference.error(found, exact) < 1e-6
    assert axis_aligned_product(x.float(), r, 1, method=method).dtype == torch.float64
    half = axis_aligned_product(x.bfloat16(), r.bfloat16(), (0, 1, 2, 3), method=method)
    rounded = x.bfloat16().double(), r.bfloat16().double()
    assert half.dtype == torch.bfloat16
    assert reference.error(half, axis_aligned_product(*rounded, (0, 1, 2, 3))) < 3e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(axis_aligned_product(x, r, (0, 1, 2, 3), method=method), exact)
    weight = make_weight(3, 3, (1,), 4, 2)
    assert axis_aligned_product(x[:0], r[:0], 1, weight=weight, method=method).shape == (0, 16, 2)
    rows = axis_aligned_product(x[:0].requires_grad_(), r[:0], 1, method=method)
    assert rows.shape == (0, 39, 4)
    rows.sum().backward()


def test_errors():
    x, r = random(3, 9, 2), random(3, 3)
    weight = make_weight(2, 2, (1,), 2, 2)
    for changes, error, message in (
        ({"x": random(3, 8, 2)}, ValueError, r"`x` must have \(lmax \+ 1\)\*\*2 rows"),
        ({"x": random(3, 9)}, ValueError, "`x` must have shape"),
        ({"x": x.long()}, TypeError, "`x` must have a floating point dtype"),
        ({"r": random(4, 3)}, ValueError, r"`r` must have shape \[3, 3\], got \[4, 3\]"),
        ({"order": 9}, ValueError, "`order` must hold distinct integers"),
        ({"lmax": -1}, ValueError, "`lmax` must be a non-negative integer"),
        ({"parity": "o2"}, ValueError, "`parity` must be 'so3' or 'o3'"),
        ({"method": "sparse"}, ValueError, "`method` must be 'auto', 'aligned' or 'dense'"),
        ({"weight": weight[:2]}, ValueError, "`weight` must hold a matrix for each of the 3"),
        ({"weight": weight[::-1]}, ValueError, r"`weight\[0\]` must have shape \[2, C_out\]"),
    ):
        arguments = {"x": x, "r": r, "order": 1} | changes
        with pytest.raises(error, match=message):
            axis_aligned_product(**arguments)
