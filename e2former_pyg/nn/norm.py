"""Equivariant normalisation."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..functional.node_norm import normalize, normalize_with_input
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
        check_positive(channels=channels)
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

    @overload
    def forward(self, x: Tensor, with_input: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, with_input: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, with_input: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The features.
            with_input (bool, optional): If set to :obj:`True`, will return the input beside the
                output, for a residual connection: a backward pass then sums the gradients of both
                without another pass over the features. (default: :obj:`False`)
        """
        check_features(x, self.lmax, self.channels)
        if with_input:
            out, x = normalize_with_input(x, self.eps)
        else:
            out = normalize(x, self.eps)
        if self.weight is not None and self.bias is not None:
            weight = self.weight.index_select(0, degree_index(self.lmax, x.device))
            bias = nn.functional.pad(self.bias.unsqueeze(0), (0, 0, 0, out.size(1) - 1))
            out = torch.addcmul(bias, out, weight)
        return (out, x) if with_input else out

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax})"
