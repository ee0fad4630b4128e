"""Linear maps of features with gates made from their scalars."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from ..so3 import degree_index
from .backends import has_triton
from .degree_linear import degree_linear


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
) -> Tensor:
    r"""A linear map of each degree, whose scalars gate themselves and whose other rows are gated by
    a number for each degree and channel,

    .. math::
        h_{i, \ell m} = x_{i, \ell m} W_\ell + \delta_{\ell 0}\, b, \qquad
        g_{i, \ell} = W^g_\ell\, x_{i, 0} + b^g_\ell, \qquad
        x'_{i, \ell m c} = \begin{cases} \mathrm{SiLU}(h_{i, 0 c}) & \ell = 0 \\
        \sigma(g_{i, \ell c})\, h_{i, \ell m c} & \ell > 0. \end{cases}

    On CUDA tensors one map gives rows and gates, and a Triton kernel joins them. Differentiable
    twice.

    Args:
        x (torch.Tensor): The features.
        weight (torch.Tensor): The matrix of each degree.
        bias (torch.Tensor): Added to degree 0.
        gate_weight (torch.Tensor, optional): The matrices of the gates below one another;
            :obj:`None` with :math:`l_{\max} = 0`.
        gate_bias (torch.Tensor, optional): Added to the gates.

    Shapes:
        - **x:** :math:`(N, (l_{\max}+1)^2, C)`
        - **weight:** :math:`(l_{\max}+1, C, H)`
        - **bias:** :math:`(H)`
        - **gate_weight:** :math:`(l_{\max} H, C)`
        - **gate_bias:** :math:`(l_{\max} H)`
        - **output:** :math:`(N, (l_{\max}+1)^2, H)`
    """
    if x.is_cuda and has_triton():
        from .triton_gate import gate

        return gate(scalars_gates_rows(x, weight, bias, gate_weight, gate_bias), len(weight) - 1)
    hidden = degree_linear(x, weight.flatten(0, 1), (1,) * len(weight), bias)
    if gate_weight is None:
        return torch.nn.functional.silu(hidden)
    return gate_torch(hidden, torch.nn.functional.linear(x[:, 0], gate_weight, gate_bias))


def scalars_gates_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
) -> Tensor:
    """The scalars, the gates and the other rows, one below the other, by a single map."""
    scalars, *others = weight.transpose(1, 2).unbind(0)
    if gate_weight is not None and gate_bias is not None:
        scalars = torch.cat((scalars, gate_weight))
        bias = torch.cat((bias, gate_bias))
    paths = (len(weight), *(1,) * len(others))
    return degree_linear(x, torch.cat((scalars, *others)), paths, bias, transposed=True)


def gate_torch(x: Tensor, gates: Tensor) -> Tensor:
    """Gates features ``x`` by ``gates``, ``[N, L C]`` with channels fastest."""
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
