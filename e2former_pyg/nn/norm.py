"""Equivariant normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..so3 import degree_index
from .linear import add_to_scalars, check_features


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

    Shapes:
        - **input:** :math:`(N, (l_{\max}+1)^2, C)`
        - **output:** :math:`(N, (l_{\max}+1)^2, C)`
    """

    def __init__(self, channels: int, lmax: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.lmax = lmax
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(lmax + 1, channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.lmax, self.channels)
        degree = degree_index(self.lmax, x.device)
        balance = ((2 * degree + 1) * (self.lmax + 1) * self.channels).reciprocal().to(x.dtype)
        mean = torch.mv(x.square().sum(-1), balance)
        scale = (mean + self.eps).rsqrt().view(-1, 1, 1)
        return add_to_scalars(x * scale * self.weight.index_select(0, degree), self.bias)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax})"
