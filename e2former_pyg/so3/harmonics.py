"""Solid and spherical harmonics in e3nn's real basis, with exact derivatives everywhere."""

from functools import cache
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from e2former_pyg.so3.coupling import coupling_table
from e2former_pyg.so3.degrees import build_constant, check_degree, degree_index, is_plain

MAX_DEGREE = 8


def _build_step(degree: int) -> np.ndarray:
    """The matrix that takes the outer product of R^(l-1) and r, flattened, to R^l."""
    table = coupling_table(degree - 1, 1, degree)
    # On the polar axis only m = 0 is left: sqrt(2l+1) in 'component' normalisation. The
    # recursion starts at degree 2 from r itself, which is R^1 without its factor sqrt(3).
    before = 1.0 if degree == 2 else sqrt(2 * degree - 1)
    scale = sqrt(2 * degree + 1) / (before * table[degree - 1, 1, degree])
    return (scale * table).reshape(-1, 2 * degree + 1)


def gradient_table(degree: int) -> np.ndarray:
    r"""The table ``[2l-1, 3, 2l+1]`` that takes :math:`R^{l-1}` to the gradient of :math:`R^l`.

    The gradient of a harmonic polynomial is harmonic and of degree :math:`l-1`, so it is a
    coupling of :math:`R^{l-1}`, the one of the recursion; since
    :math:`\mathbf{r} \cdot \nabla R^l = l R^l`, the factor is that of the recursion times
    :math:`l`.
    """
    table = coupling_table(degree - 1, 1, degree)
    scale = sqrt((2 * degree + 1) / (2 * degree - 1)) / table[degree - 1, 1, degree]
    return degree * scale * table


_STEPS = {degree: _build_step(degree) for degree in range(2, MAX_DEGREE + 1)}
_STEP_TENSORS = {degree: torch.from_numpy(step) for degree, step in _STEPS.items()}


@cache
def _cached_step(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return build_constant(lambda: _STEP_TENSORS[degree].to(device=device, dtype=dtype))


def _step(degree: int, like: Tensor) -> Tensor:
    if is_plain(like):
        return _cached_step(degree, like.dtype, like.device)
    if torch.compiler.is_dynamo_compiling():
        return _STEP_TENSORS[degree].to(like)
    # Fake tensors refuse to meet a real one, but take up one that is made among them.
    return torch.tensor(_STEPS[degree], dtype=like.dtype, device=like.device)


def _rescale(lmax: int, rows: Tensor, normalization: str) -> Tensor:
    """Takes rows from 'component' to another normalisation."""
    if normalization == "integral":
        return rows / sqrt(4 * pi)
    degrees = degree_index(lmax, rows.device)
    return rows / (2 * degrees + 1).to(rows.dtype).sqrt()


def _check(lmax: int, r: Tensor, normalization: str) -> int:
    lmax = check_degree("lmax", lmax)
    if lmax > MAX_DEGREE:
        raise ValueError(f"`lmax` must be at most {MAX_DEGREE}, found {lmax}")
    if not isinstance(r, Tensor):
        raise TypeError(f"`r` must be a tensor, found {type(r).__name__}")
    if not r.is_floating_point():
        raise TypeError(f"`r` must have a floating point dtype, found {r.dtype}")
    if r.dim() == 0 or r.size(-1) != 3:
        raise ValueError(f"`r` must have shape [..., 3], found {list(r.shape)}")
    if normalization not in ("component", "norm", "integral"):
        raise ValueError(
            f"`normalization` must be 'component', 'norm' or 'integral', found {normalization!r}"
        )
    return lmax


def _recursion(lmax: int, r: Tensor) -> Tensor:
    rows = [r.new_ones((*r.shape[:-1], 1))]
    if lmax >= 1:
        rows.append(r * sqrt(3.0))
    last = r
    for degree in range(2, lmax + 1):
        outer = (last.unsqueeze(-1) * r.unsqueeze(-2)).flatten(-2)
        last = outer @ _step(degree, r)
        rows.append(last)
    return torch.cat(rows, dim=-1)


def _evaluate(lmax: int, r: Tensor, normalization: str) -> Tensor:
    if torch.is_autocast_enabled(r.device.type):
        with torch.autocast(r.device.type, enabled=False):
            rows = _recursion(lmax, r)
    else:
        rows = _recursion(lmax, r)
    return rows if normalization == "component" else _rescale(lmax, rows, normalization)


def solid_harmonics(lmax: int, r: Tensor, *, normalization: str = "component") -> Tensor:
    r"""Computes the real solid harmonics of all degrees up to :obj:`lmax`,

    .. math::
        R^{\ell}(\mathbf{r}) = {|\mathbf{r}|}^{\ell} \,
        Y^{\ell}\!\left(\mathbf{r} / |\mathbf{r}|\right),

    in e3nn's basis (the polar axis is :math:`y`; degree 1 is
    :math:`\sqrt{3}\,(x, y, z)` in :obj:`"component"` normalisation).

    They are homogeneous polynomials and are computed as such, by coupling
    :math:`R^{\ell-1}` with :math:`\mathbf{r}`: without divisions, roots or angles, all derivatives
    are exact also at the origin and on every axis.

    Args:
        lmax (int): The largest degree, at most 8.
        r (torch.Tensor): The vectors, of any floating point type. Computed in this type, also
            under autocast.
        normalization (str, optional): :obj:`"component"`
            (:math:`{|Y^{\ell}|}^2 = 2\ell+1`), :obj:`"norm"` (:math:`{|Y^{\ell}|}^2 = 1`) or
            :obj:`"integral"` (orthonormal on the sphere). (default: :obj:`"component"`)

    Shapes:
        - **r:** :math:`(*, 3)`
        - **output:** :math:`(*, (\ell_{\max}+1)^2)`, row :math:`\ell^2 + \ell + m`

    Raises:
        TypeError: If :obj:`r` is no tensor of floating point type.
        ValueError: If :obj:`lmax`, :obj:`normalization` or the shape of :obj:`r` is not valid.
    """
    return _evaluate(_check(lmax, r, normalization), r, normalization)


def spherical_harmonics(lmax: int, r: Tensor, *, normalization: str = "component") -> Tensor:
    r"""Computes the real spherical harmonics :math:`Y^{\ell}(\mathbf{r} / |\mathbf{r}|)` of all
    degrees up to :obj:`lmax`, in e3nn's basis.

    A zero vector has no direction: there :math:`Y^0` is as elsewhere, and all other degrees are
    zero, as are their first and second derivatives.

    Args:
        lmax (int): The largest degree, at most 8.
        r (torch.Tensor): The vectors, of any length and floating point type. Computed in this
            type, also under autocast.
        normalization (str, optional): :obj:`"component"`, :obj:`"norm"` or :obj:`"integral"`, see
            :func:`solid_harmonics`. (default: :obj:`"component"`)

    Shapes:
        - **r:** :math:`(*, 3)`
        - **output:** :math:`(*, (\ell_{\max}+1)^2)`, row :math:`\ell^2 + \ell + m`

    Raises:
        TypeError: If :obj:`r` is no tensor of floating point type.
        ValueError: If :obj:`lmax`, :obj:`normalization` or the shape of :obj:`r` is not valid.
    """
    lmax = _check(lmax, r, normalization)
    square = (r * r).sum(dim=-1, keepdim=True)
    zero = square == 0
    # Masked before and after the root: neither value nor derivatives can become NaN at zero.
    inverse = square.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)
    return _evaluate(lmax, r * inverse, normalization)
