"""Products of halves of the channels, summed over the rows of each degree."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from ..so3 import degree_index
from ..so3.degrees import build_constant
from .backends import has_triton


def degree_products(x: Tensor) -> Tensor:
    r"""Inner products of the two halves of the channels, an invariant of each degree and channel,

    .. math::
        p_{i \ell c} = \frac{1}{\sqrt{2\ell+1}} \sum_m x_{i, \ell m, c}\, x_{i, \ell m, C/2 + c}.

    CUDA tensors take a Triton kernel.

    Args:
        x (torch.Tensor): The features.

    Shapes:
        - **x:** :math:`(N, (l_{\max}+1)^2, C)`
        - **output:** :math:`(N, (l_{\max}+1)\, C/2)`
    """
    if x.is_cuda and has_triton():
        from .triton_products import degree_products as fused

        return fused(x)
    return degree_products_torch(x)


def degree_products_torch(x: Tensor) -> Tensor:
    """The same in PyTorch."""
    degrees = round(x.size(1) ** 0.5)
    return _Products.apply(x, _degree_sums(degrees - 1, x.dtype, x.device))


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
    size = sums.size(1) // table.size(0)
    return table.t() @ sums.view(len(sums), table.size(0), size)


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
