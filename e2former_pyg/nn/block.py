"""A transformer block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.typing import Adj

from .attention import E2FormerAttention
from .feed_forward import GatedFeedForward
from .norm import RMSNorm


class E2FormerBlock(nn.Module):
    r"""A pre-norm transformer block,

    .. math::
        x \leftarrow x + \mathrm{Attention}(\mathrm{RMSNorm}(x)), \qquad
        x \leftarrow x + \mathrm{FeedForward}(\mathrm{RMSNorm}(x)),

    with :class:`E2FormerAttention` and :class:`GatedFeedForward`.

    Args:
        channels (int): Size of each row, divisible by :obj:`heads`.
        lmax (int): Highest degree.
        heads (int, optional): Number of heads. (default: :obj:`8`)
        hidden_channels (int, optional): Size of the hidden rows of the feed-forward network.
            (default: :obj:`channels`)
        **kwargs (optional): Additional arguments of :class:`E2FormerAttention`.

    Shapes:
        - **input:** as :class:`E2FormerAttention` with one kind of nodes,
          :math:`(|\mathcal{V}|, (l_{\max}+1)^2, C)`
        - **output:** :math:`(|\mathcal{V}|, (l_{\max}+1)^2, C)`
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        *,
        heads: int = 8,
        hidden_channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.lmax = lmax
        self.heads = heads
        # The norms need no weights of their own, since linear maps follow, and the residual
        # connection carries the node's own features already.
        kwargs.setdefault("root_weight", False)
        self.norm_attention = RMSNorm(channels, lmax, affine=False)
        self.attention = E2FormerAttention(channels, channels, lmax, heads=heads, **kwargs)
        self.norm_feed_forward = RMSNorm(channels, lmax, affine=False)
        self.feed_forward = GatedFeedForward(channels, lmax, hidden_channels)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.attention.reset_parameters()
        self.feed_forward.reset_parameters()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Adj,
        z: Tensor | None = None,
        edge_shift: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        *,
        strain: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module; see :meth:`E2FormerAttention.forward`."""
        x = x + self.attention(
            self.norm_attention(x),
            pos,
            edge_index,
            z,
            edge_shift,
            edge_attr,
            size,
            strain=strain,
            batch=batch,
        )
        return x + self.feed_forward(self.norm_feed_forward(x))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax}, heads={self.heads})"
