"""Normalisation of the features of each node."""

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


def normalize(x: Tensor, eps: float) -> Tensor:
    r"""Divides the features of each node by their root mean square, in which all degrees have the
    same weight,

    .. math::
        x'_{i, \ell m c} = \frac{x_{i, \ell m c}}
        {\sqrt{\epsilon + \frac{1}{C} \sum_{\ell m c} \frac{x_{i, \ell m c}^2}
        {(2\ell+1)(l_{\max}+1)}}}.

    CUDA tensors take a Triton kernel. Differentiable twice.

    Args:
        x (torch.Tensor): The features.
        eps (float): :math:`\epsilon`.

    Shapes:
        - **x, output:** :math:`(N, (l_{\max}+1)^2, C)`
    """
    if x.is_cuda and has_triton():
        from .triton_norm import normalize as fused

        return fused(x, eps)
    return normalize_torch(x, eps)


def normalize_with_input(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """:func:`normalize` and its input, for a residual connection: the gradients of both are summed
    in the pass over the features that the norm's takes anyway.
    """
    if x.is_cuda and has_triton():
        from .triton_norm import normalize_with_input as fused

        return fused(x, eps)
    return _normalize(x, eps)


def normalize_torch(x: Tensor, eps: float) -> Tensor:
    """:func:`normalize` in PyTorch."""
    return _normalize(x, eps)[0]


def _normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    lmax = round(x.size(1) ** 0.5) - 1
    both: tuple[Tensor, Tensor] = _Normalize.apply(
        x, _balance(lmax, x.size(2), x.dtype, x.device), eps
    )
    return both


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
    """``y = s x`` with ``s = (<x, b x> + eps)**-0.5``, beside ``x``, twice differentiable by hand.

    Autograd's own second derivative takes several times as many operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, balance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # A norm takes one pass over the features and leaves nothing of their size.
        squares = torch.linalg.vector_norm(x, dim=2, keepdim=True).square()
        scale = ((squares * balance).sum(dim=1, keepdim=True) + eps).rsqrt()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, balance, scale)
        return x * scale, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, addend: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return addend, None, None
        x, balance, scale = ctx.saved_tensors
        return _NormalizeBackward.apply(x, grad, addend, balance, scale), None, None


@autograd_without_autocast
class _NormalizeBackward(torch.autograd.Function):
    """``s g - s**3 <x, g> b x``, where ``s`` is the function of ``x`` above, and an addend."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, grad: Tensor, addend: Tensor | None, balance: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, grad, balance, scale)
        along = scale**3 * _dot(x, grad) * balance
        scaled = grad * scale if addend is None else torch.addcmul(addend, grad, scale)
        return torch.addcmul(scaled, x, along, value=-1)

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
        return grad_x, grad_grad, h if ctx.needs_input_grad[2] else None, None, None
