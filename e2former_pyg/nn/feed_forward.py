"""Gated feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn

from ..checks import check_dtype, check_positive
from ..functional.gated_linear import gated_linear
from .linear import DegreeLinear, check_features


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
        - **input:** :math:`(N, (l_{\max}+1)^2, C)`; as many to be added to the output *(optional)*
        - **output:** :math:`(N, (l_{\max}+1)^2, C)`
    """

    def __init__(self, channels: int, lmax: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        hidden_channels = channels if hidden_channels is None else hidden_channels
        check_positive(channels=channels, hidden_channels=hidden_channels)
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The features.
            residual (torch.Tensor, optional): Features of the output's shape that are added to it,
                on a GPU in the same pass. (default: :obj:`None`)
        """
        check_features(x, self.lmax, self.channels)
        check_dtype("x", x, self.expand.weight.dtype)
        assert self.expand.bias is not None
        gates = (None, None) if self.gate is None else (self.gate.weight, self.gate.bias)
        hidden = gated_linear(x, self.expand.weight, self.expand.bias, *gates)
        return self.contract(hidden, residual)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.channels}, lmax={self.lmax}, "
            f"hidden_channels={self.hidden_channels})"
        )
