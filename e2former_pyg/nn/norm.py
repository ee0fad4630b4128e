"""Equivariant normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.degree_linear import add_to_scalars
from ..functional.node_norm import normalize
from ..so3 import degree_index
from .linear import check_features


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
        out = normalize(x, self.eps)
        if self.weight is None or self.bias is None:
            return out
        return add_to_scalars(
            out * self.weight.index_select(0, degree_index(self.lmax, x.device)), self.bias
        )

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax})"
