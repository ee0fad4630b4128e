"""Gates of the rows of each degree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from ..so3 import degree_index
from .backends import has_triton


def gate(x: Tensor, gates: Tensor) -> Tensor:
    r"""Gates scalars by themselves and other rows by a number for each degree and channel,

    .. math::
        x'_{i, \ell m c} = \begin{cases} \mathrm{SiLU}(x_{i, 0 c}) & \ell = 0 \\
        \sigma(g_{i, \ell c})\, x_{i, \ell m c} & \ell > 0. \end{cases}

    CUDA tensors take a Triton kernel. Differentiable twice.

    Args:
        x (torch.Tensor): The features.
        gates (torch.Tensor): The gates, channels fastest.

    Shapes:
        - **x, output:** :math:`(N, (l_{\max}+1)^2, C)`
        - **gates:** :math:`(N, l_{\max} C)`
    """
    if x.is_cuda and has_triton():
        from .triton_gate import gate as fused

        return fused(x, gates)
    return gate_torch(x, gates)


def gate_torch(x: Tensor, gates: Tensor) -> Tensor:
    """The same in PyTorch."""
    lmax = round(x.size(1) ** 0.5) - 1
    # SiLU(x) = sigmoid(x) x, so that scalars are gated by themselves.
    gates = torch.cat([x[:, :1], gates.view(len(x), lmax, x.size(2))], dim=1)
    return _Gate.apply(x, gates, degree_index(lmax, x.device))


def _degree_sum(x: Tensor, degree: Tensor, like: Tensor) -> Tensor:
    """Sums the rows of each degree."""
    return torch.zeros_like(like).index_add_(1, degree, x)


@autograd_without_autocast
class _Gate(torch.autograd.Function):
    """``x[row] sigmoid(gates[degree of row])``, twice differentiable by hand: autograd's own second
    derivative takes several times as many operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, degree: Tensor) -> Tensor:
        ctx.save_for_backward(x, gates, degree)
        return x * gates.sigmoid().index_select(1, degree)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_GateBackward.apply(grad, *ctx.saved_tensors), None)


@autograd_without_autocast
class _GateBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, gates: Tensor, degree: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(grad, x, gates, degree)
        gate = gates.sigmoid()
        sums = _degree_sum(grad * x, degree, gates)
        return grad * gate.index_select(1, degree), sums * (gate * (1 - gate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h_x: Tensor, h_gates: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, gates, degree = ctx.saved_tensors
        gate = gates.sigmoid()
        slope = gate * (1 - gate)
        turned = (h_gates * slope).index_select(1, degree)
        grad_grad = torch.addcmul(h_x * gate.index_select(1, degree), x, turned)
        grad_gates = _degree_sum(grad * h_x, degree, gates) * slope
        bend = slope * (1 - 2 * gate) * h_gates
        grad_gates.addcmul_(_degree_sum(grad * x, degree, gates), bend)
        return grad_grad, grad * turned, grad_gates, None
