r"""The coefficients that carry a harmonic of a difference over to the nodes at its ends.

The solid harmonic of a difference is a harmonic polynomial in each of the two vectors, so its part
of degree :math:`k` in :math:`\mathbf{b}` is made of :math:`R^{\ell-k}(\mathbf{a})` and
:math:`R^{k}(\mathbf{b})` alone, and has to be their coupling. Hence the *addition theorem*

.. math::
    R^{\ell}(\mathbf{a} - \mathbf{b}) &= \sum_{k=0}^{\ell} (-1)^k c_{\ell k}
    \left[ R^{\ell-k}(\mathbf{a}) \otimes R^{k}(\mathbf{b}) \right]^{(\ell)}

    c_{\ell k} &= \sqrt{\binom{2\ell}{2k} \frac{2\ell+1}{(2(\ell-k)+1)(2k+1)}}

(:func:`~e2former_pyg.so3.addition_coefficient`). The constants follow from
:math:`\mathbf{b} = t \mathbf{a}` on the polar axis: the left side is
:math:`(1-t)^{\ell} R^{\ell}(\mathbf{a})`, the product on the right has
:math:`\langle \ell-k\,0\,k\,0 | \ell\,0 \rangle`, and
:math:`\sqrt{\binom{2\ell}{2k}} \langle \ell-k\,0\,k\,0 | \ell\,0 \rangle = \binom{\ell}{k}`.

A feature :math:`v` of the node at :math:`\mathbf{b}` is coupled to this harmonic. *Recoupling*
three angular momenta brings it next to the harmonic of its own node,

.. math::
    \left[ v^{(l_1)} \otimes \left[ R^{\ell-k}(\mathbf{a}) \otimes R^{k}(\mathbf{b})
    \right]^{(\ell)} \right]^{(l_3)} = \sum_{L} \gamma_L\, p_L

with

.. math::
    p_L = \left[ \left[ v^{(l_1)} \otimes R^{k}(\mathbf{b}) \right]^{(L)} \otimes
    R^{\ell-k}(\mathbf{a}) \right]^{(l_3)}

and

.. math::
    \gamma_L = (-1)^{l_1+\ell+l_3} \sqrt{(2L+1)(2\ell+1)}
    \begin{Bmatrix} l_1 & k & L \\ \ell-k & l_3 & \ell \end{Bmatrix}

(:func:`~e2former_pyg.so3.recoupling_coefficient`). The inner product of :math:`p_L` belongs to
one node, and so does the outer one once the inner ones have been summed over neighbours.

From the `"E2Former" <https://arxiv.org/abs/2501.19216>`_ paper, in the normalisation of
:func:`~e2former_pyg.so3.solid_harmonics` and :func:`~e2former_pyg.so3.clebsch_gordan`.
"""

from __future__ import annotations

from math import comb, sqrt

from .coupling import wigner_6j
from .degrees import check_degree


def addition_coefficient(degree: int, k: int) -> float:
    r"""Returns :math:`(-1)^k c_{\ell k}` of the addition theorem

    .. math::
        R^{\ell}(\mathbf{a} - \mathbf{b}) &= \sum_{k=0}^{\ell} (-1)^k c_{\ell k}
        \left[ R^{\ell-k}(\mathbf{a}) \otimes R^{k}(\mathbf{b}) \right]^{(\ell)}

        c_{\ell k} &= \sqrt{\binom{2\ell}{2k} \frac{2\ell+1}{(2(\ell-k)+1)(2k+1)}}

    for solid harmonics in :obj:`"component"` normalisation, rounded once to double precision.

    Args:
        degree (int): The degree :math:`\ell` of the harmonic of the difference.
        k (int): The degree in :math:`\mathbf{b}`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If :obj:`degree` is no degree or :obj:`k` not in :math:`0, \ldots, \ell`.
    """
    degree, k = check_degree("degree", degree), check_degree("k", k)
    if k > degree:
        raise ValueError(f"`k` must lie between 0 and `degree` = {degree}, found {k}")
    rest = degree - k
    square = comb(2 * degree, 2 * k) * (2 * degree + 1) / ((2 * rest + 1) * (2 * k + 1))
    return (-1) ** k * sqrt(square)


def recoupling_coefficient(l1: int, k: int, inner: int, degree: int, l3: int) -> float:
    r"""Returns the coefficient

    .. math::
        (-1)^{l_1+\ell+l_3} \sqrt{(2L+1)(2\ell+1)}
        \begin{Bmatrix} l_1 & k & L \\ \ell-k & l_3 & \ell \end{Bmatrix}

    with which :math:`[[v^{(l_1)} \otimes R^k]^{(L)} \otimes R^{\ell-k}]^{(l_3)}` enters
    :math:`[v^{(l_1)} \otimes [R^{\ell-k} \otimes R^k]^{(\ell)}]^{(l_3)}`.

    Args:
        l1 (int): The degree of the feature.
        k (int): The degree of the harmonic at the feature's node.
        inner (int): The degree :math:`L` of their product.
        degree (int): The degree :math:`\ell` of the harmonic of the difference.
        l3 (int): The degree of the whole product.

    Returns:
        The value, :obj:`0.0` where the degrees cannot be coupled.

    Raises:
        TypeError: If a degree is not a number.
        ValueError: If a degree is negative or no integer, or :obj:`k` larger than :obj:`degree`.
    """
    degree, k = check_degree("degree", degree), check_degree("k", k)
    if k > degree:
        raise ValueError(f"`k` must lie between 0 and `degree` = {degree}, found {k}")
    symbol = wigner_6j(l1, k, inner, degree - k, l3, degree)
    return (-1) ** (l1 + degree + l3) * sqrt((2 * inner + 1) * (2 * degree + 1)) * symbol
