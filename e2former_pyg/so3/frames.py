r"""Rotations that bring vectors to the polar axis :math:`y`, as matrices of any degree.

No field of such rotations is continuous on the whole sphere, so there are two charts, one for each
hemisphere. Which rotation is taken does not matter to a product evaluated in its frame, and nothing
here is to be differentiated: a derivative through a frame would be wrong where charts meet, and
infinite or missing at zero.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from e2former_pyg.so3.coupling import coupling_table
from e2former_pyg.so3.degrees import build_constant, is_plain


def _build_stretch(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    table = torch.tensor(coupling_table(degree - 1, 1, degree), dtype=dtype, device=device)
    return table.flatten(0, 1)


@cache
def _cached_stretch(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return build_constant(lambda: _build_stretch(degree, dtype, device))


def aligning_rotation(r: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns lengths and rotations :math:`Q` with :math:`Q \mathbf{r} = |\mathbf{r}| \hat y`.

    On the hemisphere :math:`y \ge 0` it is the smallest such rotation; the other hemisphere is
    first turned over, by half a turn around :math:`x`. Neither angles nor random numbers occur. A
    zero vector is taken to lie on the axis.

    Shapes:
        - **r:** :math:`(N, 3)`
        - **output:** :math:`(N)` and :math:`(N, 3, 3)`
    """
    largest = r.abs().amax(dim=-1, keepdim=True)  # squares of small vectors underflow
    scaled = r / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = scaled / torch.where(norm > 0, norm, 1.0)
    x, y, z = unit.unbind(-1)
    side = torch.where(y < 0, -1.0, 1.0).to(r.dtype)
    y, z = y * side, z * side
    y = torch.where(norm.squeeze(-1) > 0, y, 1.0)
    scale = 1 / (1 + y)
    xz = -x * z * scale
    entries = (
        *(1 - x * x * scale, -x * side, xz * side),
        *(x, y * side, z * side),
        *(xz, -z * side, (1 - z * z * scale) * side),
    )
    matrix = torch.stack(entries, dim=-1).unflatten(-1, (3, 3))
    return (largest * norm).squeeze(-1), matrix


def rotation_matrices(lmax: int, matrix: Tensor) -> list[Tensor]:
    r"""Returns the matrices :math:`D^{\ell}`, :math:`(N, 2\ell+1, 2\ell+1)`, of all degrees up to
    :obj:`lmax`.

    Degree 1 transforms as a vector, :math:`D^1 = Q`. Each next degree is the stretched coupling
    :math:`C^{\top} (D^{\ell-1} \otimes D^1)\, C` of the one before, an exact polynomial in
    :math:`Q`.
    """
    matrices = [matrix.new_ones(matrix.size(0), 1, 1), matrix][: lmax + 1]
    for degree in range(2, lmax + 1):
        get = _cached_stretch if is_plain(matrix) else _build_stretch
        stretch = get(degree, matrix.dtype, matrix.device)
        size = stretch.size(0)
        pairs = matrices[-1][:, :, None, :, None] * matrix[:, None, :, None, :]
        pairs = pairs.reshape(-1, size, size)
        matrices.append(stretch.t() @ pairs @ stretch)
    return matrices
