"""The addition theorem and the recoupling, against e3nn's harmonics and 3j and sympy's 6j."""

import itertools
import math
from functools import cache

import pytest
import torch
from e3nn import o3
from sympy import binomial, sqrt
from sympy.physics.wigner import clebsch_gordan as sympy_cg
from sympy.physics.wigner import wigner_6j as sympy_6j

from e2former_pyg.so3 import addition_coefficient, recoupling_coefficient


def solid(degree, vectors):
    return o3.spherical_harmonics(degree, vectors, normalize=False, normalization="component")


@cache
def table(l1, l2, l3):
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)


def couple(x, y, l3):
    l1, l2 = (x.size(-1) - 1) // 2, (y.size(-1) - 1) // 2
    return torch.einsum("ni,nj,ijk->nk", x, y, table(l1, l2, l3))


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("degree", range(9))
def test_addition_theorem(reference, degree):
    a, b = random(2, 20, 3)
    found = sum(
        addition_coefficient(degree, k) * couple(solid(degree - k, a), solid(k, b), degree)
        for k in range(degree + 1)
    )
    assert reference.error(found, solid(degree, a - b)) < 1e-12


def test_addition_coefficients_are_binomials_on_the_axis():
    """There the theorem is (a - b)**l, by sympy's exact coefficients."""
    for degree in range(9):
        for k in range(degree + 1):
            exact = sqrt(binomial(2 * degree, 2 * k)) * sympy_cg(degree - k, k, degree, 0, 0, 0)
            assert exact == binomial(degree, k)
            found = addition_coefficient(degree, k)
            scale = math.sqrt((2 * degree + 1) / ((2 * (degree - k) + 1) * (2 * k + 1)))
            racah = float(sqrt(binomial(2 * degree, 2 * k))) * scale
            assert found == pytest.approx((-1) ** k * racah, rel=1e-15)


def cases(highest):
    for l1, degree in itertools.product(range(highest + 1), repeat=2):
        for l3 in range(abs(l1 - degree), l1 + degree + 1):
            for k in range(degree + 1):
                yield l1, degree, l3, k


def test_recoupling(reference):
    """Two products over the same three factors, for all degrees up to 4."""
    compared = 0
    for l1, degree, l3, k in cases(4):
        v, (a, b) = random(3, 2 * l1 + 1, seed=1), random(2, 3, 3)
        harmonic = couple(solid(degree - k, a), solid(k, b), degree)
        found = torch.zeros(3, 2 * l3 + 1, dtype=torch.float64)
        for inner in range(abs(l1 - k), l1 + k + 1):
            if abs(inner - l3) <= degree - k <= inner + l3:
                rows = couple(couple(v, solid(k, b), inner), solid(degree - k, a), l3)
                found += recoupling_coefficient(l1, k, inner, degree, l3) * rows
        assert reference.error(found, couple(v, harmonic, l3)) < 1e-13, (l1, degree, l3, k)
        compared += 1
    assert compared == 305


def test_recoupling_coefficients_match_sympy():
    for l1, degree, l3, k in cases(4):
        for inner in range(abs(l1 - k), l1 + k + 1):
            if not abs(inner - l3) <= degree - k <= inner + l3:
                continue
            exact = sqrt((2 * inner + 1) * (2 * degree + 1))
            exact *= (-1) ** (l1 + degree + l3) * sympy_6j(l1, k, inner, degree - k, l3, degree)
            found = recoupling_coefficient(l1, k, inner, degree, l3)
            assert abs(found - float(exact)) < 1e-15 * max(1.0, abs(found))


def test_recoupling_is_a_unit_vector():
    """It changes one orthonormal basis of the triple product into another."""
    row = [recoupling_coefficient(3, 2, inner, 4, 4) for inner in range(1, 6)]
    assert sum(value * value for value in row) == pytest.approx(1.0, rel=1e-14)


def test_errors_and_zeros():
    assert addition_coefficient(3, 0) == 1.0
    assert recoupling_coefficient(1, 1, 3, 2, 1) == 0.0
    with pytest.raises(ValueError, match="`k` must lie between 0 and `degree` = 2, found 3"):
        addition_coefficient(2, 3)
    with pytest.raises(ValueError, match="`k` must lie between 0 and `degree` = 1, found 2"):
        recoupling_coefficient(1, 2, 1, 1, 1)
    with pytest.raises(ValueError, match="`degree` must be a non-negative integer, found -1"):
        addition_coefficient(-1, 0)
    with pytest.raises(TypeError, match="`k` must be an integer, found str"):
        recoupling_coefficient(1, "1", 1, 1, 1)
