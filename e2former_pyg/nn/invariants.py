"""Invariants of equivariant features."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from ..so3 import degree_index
from ..so3.degrees import build_constant
from .linear import DegreeLinear


@torch.compiler.assume_constant_result
@cache
def _degree_sums(lmax: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""The matrix ``[lmax + 1, rows]`` that sums rows of a degree over :math:`\sqrt{2\ell+1}`."""

    def build() -> Tensor:
        degree = degree_index(lmax, "cpu")
        sums = (degree == torch.arange(lmax + 1).unsqueeze(1)) * (2 * degree + 1).double().rsqrt()
        return sums.to(device, dtype)

    return build_constant(build)


def _sum(rows: Tensor, table: Tensor) -> Tensor:
    """Sums rows ``[N, M, h]`` to degrees, ``[N, degrees * h]``."""
    return (table @ rows).flatten(1)


def _spread(sums: Tensor, table: Tensor) -> Tensor:
    """The transpose of :func:`_sum`."""
    return table.t() @ sums.view(len(sums), table.size(0), -1)


@autograd_without_autocast
class _Products(torch.autograd.Function):
    """Sums of the products of both halves of the channels, twice differentiable by hand: autograd's
    own second derivative takes several times as many operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(x, table)
        left, right = x.chunk(2, dim=-1)
        return _sum(left * right, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _ProductsBackward.apply(grad, *ctx.saved_tensors), None


@autograd_without_autocast
class _ProductsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x, table)
        left, right = x.chunk(2, dim=-1)
        rows = _spread(grad, table)
        return torch.cat([rows * right, rows * left], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, table = ctx.saved_tensors
        left, right = x.chunk(2, dim=-1)
        h_left, h_right = h.chunk(2, dim=-1)
        rows = _spread(grad, table)
        grad_grad = _sum(torch.addcmul(h_left * right, h_right, left), table)
        return grad_grad, torch.cat([rows * h_right, rows * h_left], dim=-1), None


class BilinearInvariants(nn.Module):
    r"""Rotation-invariant scalars made from all degrees of the features: inner products of two
    linear maps per degree, then a small network,

    .. math::
        p_{i\ell} = \frac{1}{\sqrt{2\ell+1}} \sum_m (A_\ell x_{i,\ell m}) \odot
        (B_\ell x_{i,\ell m}), \qquad
        x'_i = W_2\, \mathrm{SiLU}(W_1 [p_{i0}, \ldots, p_{i l_{\max}}]).

    They make the queries and keys of :class:`E2FormerAttention`.

    Args:
        in_channels (int): Size of each input row.
        out_channels (int): Number of invariants.
        lmax (int): Highest degree.
        hidden_channels (int, optional): Number of inner products for each degree.
            (default: half of :obj:`in_channels`)

    Shapes:
        - **input:** :math:`(N, (l_{\max}+1)^2, C_\mathrm{in})`
        - **output:** :math:`(N, C_\mathrm{out})`
    """

    def __init__(
        self, in_channels: int, out_channels: int, lmax: int, hidden_channels: int | None = None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lmax = lmax
        self.hidden_channels = hidden_channels or max(in_channels // 2, 1)
        self.lin = DegreeLinear(in_channels, 2 * self.hidden_channels, lmax)
        self.mlp = nn.Sequential(
            nn.Linear((lmax + 1) * self.hidden_channels, in_channels),
            nn.SiLU(),
            nn.Linear(in_channels, out_channels),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.lin.reset_parameters()
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lin(x)
        table = _degree_sums(self.lmax, hidden.dtype, hidden.device)
        return self.mlp(_Products.apply(hidden, table))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, lmax={self.lmax})"
        )
