"""Gated feed-forward network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from ..so3 import degree_index
from .linear import DegreeLinear


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


class GatedFeedForward(nn.Module):
    r"""A feed-forward network with gates made from scalars,

    .. math::
        h = W_1 x, \qquad
        h'_{\ell m} = \begin{cases} \mathrm{SiLU}(h_0) & \ell = 0 \\
        \sigma(W^g_\ell x_0)\, h_{\ell m} & \ell > 0 \end{cases}, \qquad
        x' = W_2 h'.

    Args:
        channels (int): Size of each row.
        lmax (int): Highest degree.
        hidden_channels (int, optional): Size of each hidden row. (default: :obj:`channels`)

    Shapes:
        - **input:** :math:`(N, (l_{\max}+1)^2, C)`
        - **output:** :math:`(N, (l_{\max}+1)^2, C)`
    """

    def __init__(self, channels: int, lmax: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = channels if hidden_channels is None else hidden_channels
        self.channels = channels
        self.lmax = lmax
        self.hidden_channels = hidden_channels
        self.expand = DegreeLinear(channels, hidden_channels, lmax)
        self.gate = nn.Linear(channels, lmax * hidden_channels) if lmax > 0 else None
        self.contract = DegreeLinear(hidden_channels, channels, lmax, bias=False)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.expand.reset_parameters()
        if self.gate is not None:
            self.gate.reset_parameters()
        self.contract.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        if self.gate is None:
            return self.contract(nn.functional.silu(hidden))
        # SiLU(h) = sigmoid(h) h, so that scalars are gated by themselves.
        gates = self.gate(x[:, 0]).view(-1, self.lmax, self.hidden_channels)
        gates = torch.cat([hidden[:, :1], gates], dim=1)
        return self.contract(_Gate.apply(hidden, gates, degree_index(self.lmax, x.device)))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.channels}, lmax={self.lmax}, "
            f"hidden_channels={self.hidden_channels})"
        )
