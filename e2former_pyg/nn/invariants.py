"""Invariants of equivariant features."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from ..functional.degree_products import degree_products
from .linear import DegreeLinear, Linear


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
            Linear((lmax + 1) * self.hidden_channels, in_channels),
            nn.SiLU(),
            Linear(in_channels, out_channels),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.lin.reset_parameters()
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    @overload
    def forward(self, x: Tensor, with_input: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, x: Tensor, with_input: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, with_input: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The features.
            with_input (bool, optional): If set to :obj:`True`, will return the input beside the
                output; see :meth:`DegreeLinear.forward`. (default: :obj:`False`)
        """
        if not with_input:
            return self.mlp(degree_products(self.lin(x)))
        factors, x = self.lin(x, with_input=True)
        return self.mlp(degree_products(factors)), x

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, lmax={self.lmax})"
        )
