"""Equivariant linear maps."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..checks import check_dtype, check_floating, check_positive, check_shape
from ..functional import Coupling
from ..functional.degree_linear import (
    degree_linear,
    degree_linear_with_input,
    linear,
    lower_degree_linear,
)


def check_features(x: Tensor, lmax: int, channels: int) -> None:
    """Raises unless ``x`` holds floating point features ``[N, (lmax + 1)**2, channels]``."""
    check_shape("x", x, "N", (lmax + 1) ** 2, channels)
    check_floating("x", x)


def check_addend(name: str, addend: Tensor | None, out: tuple[int, int, int], like: Tensor) -> None:
    """Raises unless what is to be added has the shape and the dtype of the output."""
    if addend is not None:
        check_shape(name, addend, *out)
        check_dtype(name, addend, like.dtype)


def with_degrees(x: Tensor, lmax: int) -> Tensor:
    """Features of degrees up to ``lmax``: rows of others are left out, missing ones are zero."""
    rows = (lmax + 1) ** 2
    if x.size(1) == rows:  # the derivative of a slice, also of a whole one, is a copy into zeros
        return x
    return x[:, :rows] if x.size(1) > rows else nn.functional.pad(x, (0, 0, 0, rows - x.size(1)))


class Linear(nn.Linear):
    r"""A :class:`torch.nn.Linear` of scalars :math:`(N, C)` that on a GPU takes the kernel of
    :class:`DegreeLinear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class DegreeLinear(nn.Module):
    r"""A linear map of the channels of each degree,

    .. math::
        x'_{i, \ell m} = x_{i, \ell m} W_\ell + \delta_{\ell 0}\, b,

    the most general equivariant linear map of features with equal channels.

    Args:
        in_channels (int): Size of each input row.
        out_channels (int): Size of each output row.
        lmax (int): Highest degree of the output.
        bias (bool, optional): If set to :obj:`False`, degree 0 has no bias.
            (default: :obj:`True`)
        lmax_in (int, optional): Highest degree of the input, of which rows of degrees above
            :obj:`lmax` are not read. (default: :obj:`lmax`)

    Shapes:
        - **input:** :math:`(N, (l_\mathrm{in}+1)^2, C_\mathrm{in})`; features to be added to the
          output :math:`(N, (l_{\max}+1)^2, C_\mathrm{out})` *(optional)*
        - **output:** :math:`(N, (l_{\max}+1)^2, C_\mathrm{out})`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        lmax: int,
        bias: bool = True,
        lmax_in: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lmax = lmax
        self.lmax_in = lmax if lmax_in is None else lmax_in
        if self.lmax_in < lmax:
            raise ValueError(f"`lmax_in` must be at least `lmax` = {lmax}, got {lmax_in}")
        self._paths = (1,) * (lmax + 1)
        self.weight = nn.Parameter(torch.empty(lmax + 1, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        nn.init.normal_(self.weight, std=self.in_channels**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(
        self, x: Tensor, addend: Tensor | None = None, with_input: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, addend: Tensor | None = None, *, with_input: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, addend: Tensor | None = None, with_input: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The features.
            addend (torch.Tensor, optional): Features that are added to the output.
                (default: :obj:`None`)
            with_input (bool, optional): If set to :obj:`True`, will return the input beside the
                output, for another map of it: a backward pass then sums the gradients of both
                without another pass over the features. (default: :obj:`False`)
        """
        check_features(x, self.lmax_in, self.in_channels)
        check_dtype("x", x, self.weight.dtype)
        shape = x.size(0), (self.lmax + 1) ** 2, self.out_channels
        check_addend("addend", addend, shape, self.weight)
        if self.lmax < self.lmax_in:
            out = lower_degree_linear(x, self.weight, self.bias, addend)
        else:
            weight = self.weight.flatten(0, 1)
            if with_input and addend is None:
                return degree_linear_with_input(x, weight, self._paths, self.bias)
            out = degree_linear(x, weight, self._paths, self.bias, addend)
        return (out, x) if with_input else out

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, lmax={self.lmax})"
        )


class PathLinear(nn.Module):
    r"""Mixes path rows into features, :math:`o^{(l_3)} = \sum_\mathrm{paths} W_\mathrm{path}\,
    y[\mathrm{path}] / \sqrt{\#\,\mathrm{paths\ into\ } l_3}`.

    Degrees without a path are zero. The output is multiplied by :obj:`scale`, and an :obj:`addend`
    of its shape is added to it.

    Args:
        in_channels (int): Channels of the path rows.
        out_channels (int): Channels of the output.
        coupling (Coupling): The paths.

    Shapes:
        - **input:** path rows :math:`(N, P, C_\mathrm{in})`
        - **output:** :math:`(N, (l_{\max}+1)^2, C_\mathrm{out})`
    """

    def __init__(self, in_channels: int, out_channels: int, coupling: Coupling) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.coupling = coupling
        self.weight = nn.ParameterList(
            torch.empty(paths * in_channels, out_channels) for paths in coupling.paths_per_degree
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for weight in self.weight:
            nn.init.normal_(weight, std=max(weight.size(0), 1) ** -0.5)

    def forward(self, rows: Tensor, addend: Tensor | None = None, scale: float = 1.0) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            rows (torch.Tensor): The path rows.
            addend (torch.Tensor, optional): Features of the output's shape that are added to it, on
                a GPU in the same pass. (default: :obj:`None`)
            scale (float, optional): A factor of the mapped rows. (default: :obj:`1.0`)
        """
        check_shape("rows", rows, "N", self.coupling.num_rows, self.in_channels)
        check_floating("rows", rows)
        check_dtype("rows", rows, self.weight[0].dtype)
        out = rows.size(0), len(self.weight) ** 2, self.out_channels
        check_addend("addend", addend, out, self.weight[0])
        weight = torch.cat(tuple(self.weight))
        if scale != 1:  # there are fewer of them than of rows
            weight = weight * scale
        return degree_linear(rows, weight, self.coupling.paths_per_degree, addend=addend)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"paths={len(self.coupling.paths)})"
        )
