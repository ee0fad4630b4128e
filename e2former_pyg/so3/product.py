r"""The product of features with the solid harmonics of one vector per node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import isqrt

import torch
from torch import Tensor

from e2former_pyg.checks import check_floating, check_shape
from e2former_pyg.precision import without_autocast
from e2former_pyg.so3.aligned_product import Frame, aligned_mixed, aligned_rows, mix
from e2former_pyg.so3.degrees import check_degree
from e2former_pyg.so3.dense_product import dense_rows, tables
from e2former_pyg.so3.paths import Paths, all_paths, as_orders

# What moving one number costs in multiplications of a matrix product: the re-index does nothing
# but move rows. At this value the rule agrees with times on a CPU (`benchmarks/wigner6j.py`).
_MOVE = 4


@cache
def product_paths(lmax_in: int, lmax_out: int, orders: tuple[int, ...], parity: str) -> Paths:
    """All paths of a product."""
    return Paths(lmax_in, lmax_out, orders, all_paths(lmax_in, lmax_out, orders, parity))


def costs(paths: Paths, channels: int, mixed: int | None = None) -> dict[str, int]:
    """Cost per node, in multiplications, of both ways to evaluate a product, without the mixing,
    which costs the same.

    Args:
        paths (Paths): The paths.
        channels (int): Channels of the features.
        mixed (int, optional): Channels after mixing; ``None`` if path rows are asked for.
    """
    harmonics = sum(2 * order + 1 for order in paths.orders)
    entries = sum((2 * path.degree_in + 1) * (2 * path.degree_out + 1) for path in paths.paths)
    rotate_in = sum((2 * degree + 1) ** 2 for degree in range(1, paths.lmax_in + 1))
    rotate_out = 0
    for degree, copies in enumerate(paths.paths_per_degree[1:], start=1):
        rotate_out += (2 * degree + 1) ** 2 * (copies * channels if mixed is None else mixed)
    frames = 0
    for degree in range(2, max(paths.lmax_in, paths.lmax_out) + 1):
        size, out = 3 * (2 * degree - 1), 2 * degree + 1
        frames += size * size + out * size * (size + out)
    return {
        "dense": entries * (harmonics + channels),
        "aligned": frames + (rotate_in + _MOVE * paths.num_rows) * channels + rotate_out,
    }


def _choose(method: str, paths: Paths, channels: int, mixed: int | None) -> str:
    if method not in ("auto", "aligned", "dense"):
        raise ValueError(f"`method` must be 'auto', 'aligned' or 'dense', got {method!r}")
    if method != "auto":
        return method
    found = costs(paths, channels, mixed)
    return min(found, key=lambda name: found[name])


def path_rows(
    paths: Paths, x: Tensor, r: Tensor, method: str = "auto", by_input: bool = False
) -> Tensor:
    """Path rows ``[N, P, C]`` of checked inputs of one dtype, if ``by_input`` in the order of
    :func:`~e2former_pyg.so3.dense_product.dense_rows`: by ``l1``, then path, then ``m3``.
    """
    if _choose(method, paths, x.size(2), None) == "aligned":
        rows = aligned_rows(Frame(paths, r), x, r)
        return rows.index_select(1, torch.cat(tables(paths, x).rows)) if by_input else rows
    rows = dense_rows(paths, x, r)
    return rows if by_input else rows.index_select(1, tables(paths, x).place)


@without_autocast
def axis_aligned_product(
    x: Tensor,
    r: Tensor,
    order: int | Iterable[int],
    lmax: int | None = None,
    *,
    weight: Sequence[Tensor] | None = None,
    parity: str = "so3",
    method: str = "auto",
) -> Tensor:
    r"""Couples features with the solid harmonics of one vector per node,

    .. math::
        y_i^{(l_1, \ell, l_3)} = \left[ x_i^{(l_1)} \otimes R^{\ell}(\mathbf{r}_i)
        \right]^{(l_3)}, \qquad
        o_i^{(l_3)} = \sum_{(l_1, \ell)} W_{l_1 \ell l_3}\, y_i^{(l_1, \ell, l_3)},

    by *Equivariant Axis-Aligned Sparsification*. Let :math:`Q_i` rotate :math:`\mathbf{r}_i` to
    the polar axis. There :math:`R^{\ell}` has only its component :math:`m = 0`, which is
    :math:`\sqrt{2\ell+1}\, {|\mathbf{r}_i|}^{\ell}`, and the sum over :math:`m_1` and :math:`m_2`
    has a single term:

    .. math::
        \left( D^{l_3}(Q_i)\, y_i \right)_{m_3} = \sqrt{2\ell+1}\, {|\mathbf{r}_i|}^{\ell}\,
        C_{\pm m_3,\, 0,\, m_3} \left( D^{l_1}(Q_i)\, x_i \right)_{\pm m_3},

    with the upper sign where :math:`l_1 + \ell + l_3` is even and the lower one where it is odd.
    Each path is a signed re-index of rows. Mixing paths commutes with rotations, so it happens in
    the frame, and only :math:`(l_{\max}+1)^2` rows are rotated back.

    A frame per vector can not be smooth everywhere: two charts are in use, without angles and
    without random numbers, and no derivative passes through them. The product is a polynomial in
    :math:`\mathbf{r}` whose gradient is known, since :math:`\nabla R^{\ell}` is a coupling of
    :math:`R^{\ell-1}`. Value and derivatives of any order are exact for every vector, zero and
    those along the axes included.

    Beside it stands the dense product: Clebsch-Gordan coefficients contracted with
    :math:`R^{\ell}(\mathbf{r}_i)` to one matrix per node and :math:`l_1`, which is applied to the
    channels. With :obj:`method="auto"` the cheaper one is taken, by multiplications per node,

    .. math::
        \mathrm{dense}: \quad & \sum_{\mathrm{paths}} (2l_1+1)(2l_3+1)\,
        \Big( C + \sum_{\ell} (2\ell+1) \Big)

        \mathrm{aligned}: \quad & C \Big( \sum_{l_1 \ge 1} (2l_1+1)^2 + 4P \Big)
        + \sum_{l_3 \ge 1} (2l_3+1)^2\, C_{l_3} + F

    where :math:`P` is the number of path rows, each of which is moved (as much as 4
    multiplications), :math:`C_{l_3}` the number of channels of degree
    :math:`l_3` that are rotated back (:math:`C_\mathrm{out}` with :obj:`weight`, else :math:`C`
    for each path) and :math:`F` the cost of the rotation matrices. Few paths, and path rows that
    are not mixed, go to the dense product; mixed products of many paths go to the frame.

    From the `"E2Former-V2" <https://arxiv.org/abs/2601.16622>`_ paper.

    Args:
        x (torch.Tensor): The features.
        r (torch.Tensor): The vectors, of any length.
        order (int or set): The degrees :math:`\ell` of the harmonics; ``n`` means ``{n}``.
        lmax (int, optional): The highest degree :math:`l_3`. (default: that of :obj:`x`)
        weight (list[torch.Tensor], optional): For each :math:`l_3` the matrix that mixes the
            channels of its paths, as in :class:`~e2former_pyg.nn.PathLinear`.
            (default: :obj:`None`, no mixing)
        parity (str, optional): ``"so3"`` keeps all paths, ``"o3"`` those with even
            :math:`l_1 + \ell + l_3`. (default: :obj:`"so3"`)
        method (str, optional): ``"aligned"``, ``"dense"`` or ``"auto"``. (default: :obj:`"auto"`)

    Shapes:
        - **x:** :math:`(N, (l_\mathrm{in}+1)^2, C)`
        - **r:** :math:`(N, 3)`
        - **weight:** :math:`(\mathrm{paths}_{l_3} \cdot C, C_\mathrm{out})` each
        - **output:** path rows :math:`(N, P, C)`, grouped by :math:`l_3`, then ordered by
          :math:`m_3`, then by :math:`\ell` and :math:`l_1`; with :obj:`weight`
          :math:`(N, (l_{\max}+1)^2, C_\mathrm{out})`

    Raises:
        TypeError: If a tensor has no floating point dtype.
        ValueError: If a shape or an option is not valid, or no path exists.
    """
    check_shape("x", x, "N", "(lmax + 1)**2", "C")
    check_floating("x", x)
    check_shape("r", r, x.size(0), 3)
    check_floating("r", r)
    lmax_in = isqrt(x.size(1)) - 1
    if lmax_in < 0 or (lmax_in + 1) ** 2 != x.size(1):
        raise ValueError(f"`x` must have (lmax + 1)**2 rows in dimension 1, got {x.size(1)}")
    lmax = lmax_in if lmax is None else check_degree("lmax", lmax)
    paths = product_paths(lmax_in, lmax, as_orders(order), parity)
    dtype = torch.promote_types(x.dtype, r.dtype)
    # Frames and powers of vectors are not for half precision.
    wide = torch.promote_types(dtype, torch.float32)
    x, r = x.to(wide), r.to(wide)
    if weight is None:
        return path_rows(paths, x, r, method).to(dtype)
    weight = [w.to(wide) for w in _check_weight(weight, paths, x.size(2))]
    if _choose(method, paths, x.size(2), weight[0].size(1)) == "aligned":
        return aligned_mixed(Frame(paths, r), x, r, weight).to(dtype)
    return mix(paths, path_rows(paths, x, r, "dense"), weight).to(dtype)


def _check_weight(weight: Sequence[Tensor], paths: Paths, channels: int) -> Sequence[Tensor]:
    if len(weight) != paths.lmax_out + 1:
        raise ValueError(
            f"`weight` must hold a matrix for each of the {paths.lmax_out + 1} output degrees, "
            f"got {len(weight)}"
        )
    for degree, (matrix, copies) in enumerate(zip(weight, paths.paths_per_degree, strict=True)):
        out_channels: int | str = weight[0].size(-1) if degree > 0 else "C_out"
        check_shape(f"weight[{degree}]", matrix, copies * channels, out_channels)
        check_floating(f"weight[{degree}]", matrix)
    return weight
