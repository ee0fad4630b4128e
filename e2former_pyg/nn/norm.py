"""Equivariant normalisation."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..functional.degree_linear import add_to_scalars
from ..precision import autograd_without_autocast
from ..so3 import degree_index
from ..so3.degrees import build_constant
from .linear import check_features


@torch.compiler.assume_constant_result
@cache
def _balance(lmax: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight of each row's squares in the mean."""

    def build() -> Tensor:
        rows = 2 * degree_index(lmax, "cpu") + 1
        return (rows * (lmax + 1) * channels).double().reciprocal().view(-1, 1).to(device, dtype)

    return build_constant(build)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of the features of each node, ``[N, 1, 1]``."""
    return (x * y).sum(dim=(1, 2), keepdim=True)


@autograd_without_autocast
class _Normalize(torch.autograd.Function):
    """``y = s x`` with ``s = (<x, b x> + eps)**-0.5``, twice differentiable by hand.

    Autograd's own second derivative takes several times as many operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, balance: Tensor, eps: float) -> Tensor:
        scale = (_dot(x, x * balance) + eps).rsqrt()
        ctx.save_for_backward(x, balance)
        ctx.eps = eps
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, balance = ctx.saved_tensors
        return _NormalizeBackward.apply(x, grad, balance, ctx.eps), None, None


@autograd_without_autocast
class _NormalizeBackward(torch.autograd.Function):
    """``s g - s**3 <x, g> b x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, balance: Tensor, eps: float) -> Tensor:
        bx = x * balance
        scale = (_dot(x, bx) + eps).rsqrt()
        ctx.save_for_backward(x, grad, balance, scale)
        return torch.addcmul(grad * scale, bx, scale**3 * _dot(x, grad), value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        x, grad, balance, scale = ctx.saved_tensors
        bx, cube = x * balance, scale**3
        xg, bxh = _dot(x, grad), _dot(bx, h)
        grad_grad = torch.addcmul(h * scale, x, cube * bxh, value=-1)
        along = 3 * cube * scale * scale * xg * bxh - cube * _dot(grad, h)
        grad_x = bx * along
        grad_x.addcmul_(grad, cube * bxh, value=-1)
        grad_x.addcmul_(h * balance, cube * xg, value=-1)
        return grad_x, grad_grad, None, None


class RMSNorm(nn.Module):
    r"""Root-mean-square normalisation of features of all degrees together,

    .. math::
        x'_{i, \ell m c} = \frac{\gamma_{\ell c}\, x_{i, \ell m c}}
        {\sqrt{\epsilon + \frac{1}{C} \sum_{\ell m c} \frac{x_{i, \ell m c}^2}
        {(2\ell+1)(l_{\max}+1)}}} + \delta_{\ell 0}\, \beta_c.

    One scale for each node keeps the ratios of degrees; every degree has the same weight in it.

    Args:
        channels (int): Size of each row.
        lmax (int): Highest degree.
        eps (float, optional): :math:`\epsilon`. (default: :obj:`1e-5`)
        affine (bool, optional): If set to :obj:`False`, there are no :math:`\gamma` and
            :math:`\beta`: a linear map that follows has the same effect.
            (default: :obj:`True`)

    Shapes:
        - **input:** :math:`(N, (l_{\max}+1)^2, C)`
        - **output:** :math:`(N, (l_{\max}+1)^2, C)`
    """

    def __init__(self, channels: int, lmax: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.lmax = lmax
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(lmax + 1, channels)) if affine else None
        self.bias = nn.Parameter(torch.empty(channels)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.lmax, self.channels)
        balance = _balance(self.lmax, self.channels, x.dtype, x.device)
        out = _Normalize.apply(x, balance, self.eps)
        if self.weight is None or self.bias is None:
            return out
        return add_to_scalars(
            out * self.weight.index_select(0, degree_index(self.lmax, x.device)), self.bias
        )

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax})"
