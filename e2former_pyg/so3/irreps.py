"""Conversions between dense feature tensors and e3nn's flat, multiplicity-major vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from e2former_pyg.so3.degrees import check_degree

if TYPE_CHECKING:
    from e3nn.o3 import Irreps


def _parse(irreps: Irreps | str) -> tuple[list[tuple[int, int]], int, int]:
    """Returns the entries (multiplicity, degree), `lmax` and the common number of channels."""
    from e3nn.o3 import Irreps  # takes a second to import

    try:
        parsed = Irreps(irreps)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"`irreps` must be valid e3nn irreps, found {irreps!r}") from error
    entries = [(entry.mul, entry.ir.l) for entry in parsed if entry.mul > 0]
    if not entries:
        raise ValueError(f"`irreps` must have at least one entry, found {irreps!r}")
    lmax = max(degree for _, degree in entries)
    channels = [0] * (lmax + 1)
    for multiplicity, degree in entries:
        channels[degree] += multiplicity
    missing = [degree for degree, count in enumerate(channels) if count == 0]
    if missing:
        raise ValueError(
            f"`irreps` must have every degree from 0 to {lmax}, found no degree {missing} "
            f"in {parsed}"
        )
    if len(set(channels)) > 1:
        raise ValueError(
            f"`irreps` must have the same multiplicity for every degree, found {channels} "
            f"for the degrees 0 to {lmax} in {parsed}"
        )
    return entries, lmax, channels[0]


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a tensor, found {type(value).__name__}")


def to_irreps(x: Tensor, irreps: Irreps | str) -> Tensor:
    r"""Flattens dense features to an e3nn vector.

    Args:
        x (torch.Tensor): The features, row :math:`\ell^2 + \ell + m`.
        irreps (e3nn.o3.Irreps or str): The layout of the result: the degrees
            :math:`0, \ldots, \ell_{\max}` in any order, all of total multiplicity :math:`C`. A
            degree may come in several entries, which then take consecutive channels. Parities are
            labels only.

    Shapes:
        - **x:** :math:`(*, (\ell_{\max}+1)^2, C)`
        - **output:** :math:`(*, (\ell_{\max}+1)^2 \cdot C)`

    Raises:
        TypeError: If the first argument is no tensor.
        ValueError: If a degree is missing, multiplicities differ, or :obj:`x` does not fit.
    """
    _check_tensor("x", x)
    entries, lmax, channels = _parse(irreps)
    if x.dim() < 2 or x.shape[-2:] != ((lmax + 1) ** 2, channels):
        raise ValueError(
            f"`x` must have shape [..., {(lmax + 1) ** 2}, {channels}] for irreps {irreps}, "
            f"found {list(x.shape)}"
        )
    start = [0] * (lmax + 1)
    blocks = []
    for multiplicity, degree in entries:
        block = x[..., degree**2 : (degree + 1) ** 2, start[degree] : start[degree] + multiplicity]
        blocks.append(block.transpose(-1, -2).flatten(-2))
        start[degree] += multiplicity
    return torch.cat(blocks, dim=-1)


def from_irreps(vec: Tensor, irreps: Irreps | str) -> Tensor:
    r"""Builds dense features from an e3nn vector; the inverse of :func:`to_irreps`.

    Args:
        vec (torch.Tensor): The e3nn vector.
        irreps (e3nn.o3.Irreps or str): The layout of :obj:`vec`: the degrees
            :math:`0, \ldots, \ell_{\max}` in any order, all of total multiplicity :math:`C`. A
            degree may come in several entries, whose channels are joined in this order. Parities
            are labels only.

    Shapes:
        - **vec:** :math:`(*, (\ell_{\max}+1)^2 \cdot C)`
        - **output:** :math:`(*, (\ell_{\max}+1)^2, C)`, row :math:`\ell^2 + \ell + m`

    Raises:
        TypeError: If the first argument is no tensor.
        ValueError: If a degree is missing, multiplicities differ, or :obj:`vec` does not fit.
    """
    _check_tensor("vec", vec)
    entries, lmax, channels = _parse(irreps)
    size = (lmax + 1) ** 2 * channels
    if vec.dim() < 1 or vec.size(-1) != size:
        raise ValueError(
            f"`vec` must have shape [..., {size}] for irreps {irreps}, found {list(vec.shape)}"
        )
    blocks: list[list[Tensor]] = [[] for _ in range(lmax + 1)]
    sizes = [multiplicity * (2 * degree + 1) for multiplicity, degree in entries]
    for (multiplicity, degree), flat in zip(entries, vec.split(sizes, dim=-1), strict=True):
        block = flat.unflatten(-1, (multiplicity, 2 * degree + 1))
        blocks[degree].append(block.transpose(-1, -2))
    return torch.cat([torch.cat(block, dim=-1) for block in blocks], dim=-2)


def default_irreps(channels: int, lmax: int, parity: str = "so3") -> Irreps:
    r"""Returns the e3nn irreps of a dense feature tensor.

    Args:
        channels (int): The number of channels of every degree.
        lmax (int): The largest degree.
        parity (str, optional): :obj:`"so3"` labels every degree even, :obj:`"o3"` gives each its
            natural parity :math:`(-1)^{\ell}`. (default: :obj:`"so3"`)

    Raises:
        TypeError: If :obj:`channels` or :obj:`lmax` is not a number.
        ValueError: If an argument is out of range.
    """
    from e3nn.o3 import Irreps  # takes a second to import

    channels = check_degree("channels", channels)
    if channels == 0:
        raise ValueError("`channels` must be positive, found 0")
    if parity not in ("so3", "o3"):
        raise ValueError(f"`parity` must be 'so3' or 'o3', found {parity!r}")
    sign = -1 if parity == "o3" else 1
    degrees = range(check_degree("lmax", lmax) + 1)
    return Irreps([(channels, (degree, sign**degree)) for degree in degrees])
