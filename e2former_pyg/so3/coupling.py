"""Coupling coefficients of SO(3), from exact rational arithmetic."""

from fractions import Fraction
from functools import cache
from math import factorial, sqrt

import numpy as np
import torch
from torch import Tensor

from e2former_pyg.so3.degrees import check_degree


def _is_triad(j1: int, j2: int, j3: int) -> bool:
    return abs(j1 - j2) <= j3 <= j1 + j2


def _triangle(j1: int, j2: int, j3: int) -> Fraction:
    return Fraction(
        factorial(j1 + j2 - j3) * factorial(j1 - j2 + j3) * factorial(-j1 + j2 + j3),
        factorial(j1 + j2 + j3 + 1),
    )


def _signed_root(factor: int | Fraction, square: Fraction) -> float:
    """Returns `factor * sqrt(square)`, rounded only at the end."""
    root = sqrt(factor * factor * square)
    return root if factor >= 0 else -root


def _complex_coefficient(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """Racah's formula for the Condon-Shortley coefficient <l1 m1 l2 m2 | l3 m1+m2>."""
    m3 = m1 + m2
    square = (2 * l3 + 1) * _triangle(l1, l2, l3)
    for degree, order in ((l1, m1), (l2, m2), (l3, m3)):
        square *= factorial(degree + order) * factorial(degree - order)
    total = Fraction(0)
    for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        denominator = (
            factorial(k)
            * factorial(l1 + l2 - l3 - k)
            * factorial(l1 - m1 - k)
            * factorial(l2 + m2 - k)
            * factorial(l3 - l2 + m1 + k)
            * factorial(l3 - l1 - m2 + k)
        )
        total += Fraction((-1) ** k, denominator)
    return _signed_root(total, square)


def _real_from_complex(degree: int) -> np.ndarray:
    """Columns of the unitary change to e3nn's real basis; the phase makes all couplings real."""
    change = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    change[degree, degree] = 1
    for m in range(1, degree + 1):
        change[degree - m, degree + m] = sqrt(0.5)
        change[degree - m, degree - m] = -1j * sqrt(0.5)
        change[degree + m, degree + m] = (-1) ** m * sqrt(0.5)
        change[degree + m, degree - m] = 1j * (-1) ** m * sqrt(0.5)
    return (1, -1j, -1, 1j)[degree % 4] * change


@cache
def coupling_table(l1: int, l2: int, l3: int) -> np.ndarray:
    """The table behind :func:`clebsch_gordan`; read-only, since it is shared."""
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1), dtype=np.complex128)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            table[l1 + m1, l2 + m2, l3 + m1 + m2] = _complex_coefficient(l1, m1, l2, m2, l3)
    table = np.einsum("abc,ai->ibc", table, _real_from_complex(l1))
    table = np.einsum("ibc,bj->ijc", table, _real_from_complex(l2))
    real = np.einsum("ijc,ck->ijk", table, _real_from_complex(l3).conj()).real.copy()
    # Forbidden entries are sums that cancel to rounding; allowed ones are far larger.
    real[np.abs(real) < 1e-14] = 0.0
    real.flags.writeable = False
    return real


@torch.compiler.disable
def clebsch_gordan(
    l1: int,
    l2: int,
    l3: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Returns the Clebsch-Gordan coefficients :math:`C_{m_1 m_2 m_3}` that couple degrees
    :math:`\ell_1` and :math:`\ell_2` to :math:`\ell_3` in e3nn's real basis,

    .. math::
        \left[ x \otimes y \right]^{(\ell_3)}_{m_3} =
        \sum_{m_1, m_2} C_{m_1 m_2 m_3} x_{m_1} y_{m_2}.

    They equal :obj:`e3nn.o3.wigner_3j(l1, l2, l3) * sqrt(2 * l3 + 1)`: the squares sum to one for
    each :math:`m_3`. Computed once in exact rational arithmetic with Racah's formula, rounded to
    double precision, and cached.

    Args:
        l1 (int): The degree of the first factor.
        l2 (int): The degree of the second factor.
        l3 (int): The degree of the product.
        dtype (torch.dtype, optional): The type of the result. (default: :obj:`torch.float64`)
        device (torch.device or str, optional): The device of the result.
            (default: :obj:`None`, the current default device)

    Returns:
        A new tensor of shape :math:`(2\ell_1+1, 2\ell_2+1, 2\ell_3+1)`.

    Raises:
        TypeError: If a degree is not a number.
        ValueError: If a degree is negative or no integer, or if the degrees are no triangle.
    """
    l1, l2, l3 = (check_degree(n, v) for n, v in (("l1", l1), ("l2", l2), ("l3", l3)))
    if not _is_triad(l1, l2, l3):
        raise ValueError(
            f"`l3` must lie between |l1 - l2| = {abs(l1 - l2)} and l1 + l2 = {l1 + l2}, found {l3}"
        )
    return torch.tensor(coupling_table(l1, l2, l3), dtype=dtype, device=device)


def wigner_6j(j1: int, j2: int, j3: int, j4: int, j5: int, j6: int) -> float:
    r"""Returns the Wigner 6j symbol

    .. math::
        \begin{Bmatrix} j_1 & j_2 & j_3 \\ j_4 & j_5 & j_6 \end{Bmatrix}

    of integer degrees, which recouples three angular momenta. Computed in exact rational
    arithmetic with Racah's formula, rounded once to double precision, and cached.

    Args:
        j1 (int): The first degree of the upper row.
        j2 (int): The second degree of the upper row.
        j3 (int): The third degree of the upper row.
        j4 (int): The first degree of the lower row.
        j5 (int): The second degree of the lower row.
        j6 (int): The third degree of the lower row.

    Returns:
        The value, :obj:`0.0` where one of the triads :math:`(j_1, j_2, j_3)`,
        :math:`(j_1, j_5, j_6)`, :math:`(j_4, j_2, j_6)` and :math:`(j_4, j_5, j_3)` violates the
        triangle condition.

    Raises:
        TypeError: If a degree is not a number.
        ValueError: If a degree is negative or no integer.
    """
    degrees = (j1, j2, j3, j4, j5, j6)
    return _wigner_6j(*(check_degree(f"j{i}", j) for i, j in enumerate(degrees, start=1)))


@cache
def _wigner_6j(j1: int, j2: int, j3: int, j4: int, j5: int, j6: int) -> float:
    triads = ((j1, j2, j3), (j1, j5, j6), (j4, j2, j6), (j4, j5, j3))
    if not all(_is_triad(*triad) for triad in triads):
        return 0.0
    square = Fraction(1)
    for triad in triads:
        square *= _triangle(*triad)
    pairs = (j1 + j2 + j4 + j5, j2 + j3 + j5 + j6, j3 + j1 + j6 + j4)
    total = Fraction(0)
    for k in range(max(sum(triad) for triad in triads), min(pairs) + 1):
        denominator = 1
        for triad in triads:
            denominator *= factorial(k - sum(triad))
        for pair in pairs:
            denominator *= factorial(pair - k)
        total += Fraction((-1) ** k * factorial(k + 1), denominator)
    return _signed_root(total, square)
