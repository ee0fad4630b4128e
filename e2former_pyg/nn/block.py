"""A transformer block."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, overload

from torch import Tensor, nn
from torch_geometric.typing import Adj

from ..checks import check_tensor
from ..functional.inputs import PairTensor, as_pair
from ..functional.sharing import SharedGeometry
from .attention import E2FormerAttention
from .feed_forward import GatedFeedForward
from .linear import with_degrees
from .norm import RMSNorm


class E2FormerBlock(nn.Module):
    r"""A pre-norm transformer block,

    .. math::
        x \leftarrow x + \mathrm{Attention}(\mathrm{RMSNorm}(x)), \qquad
        x \leftarrow x + \mathrm{FeedForward}(\mathrm{RMSNorm}(x)),

    with :class:`E2FormerAttention` and :class:`GatedFeedForward`.

    Args:
        channels (int): Size of each row, divisible by :obj:`heads`.
        lmax (int): Highest degree of the output.
        lmax_in (int, optional): Highest degree of the input, of which the residual connection
            carries degrees up to :obj:`lmax`. (default: :obj:`lmax`)
        heads (int, optional): Number of heads. (default: :obj:`8`)
        hidden_channels (int, optional): Size of the hidden rows of the feed-forward network.
            (default: :obj:`channels`)
        **kwargs (optional): Additional arguments of :class:`E2FormerAttention`, of which
            :obj:`root_weight` is :obj:`False` by default, since the residual connection carries
            the node's own features.

    Shapes:
        - **input:** as :class:`E2FormerAttention`, :math:`(|\mathcal{V}|, (l_\mathrm{in}+1)^2,
          C)`, or :math:`(|\mathcal{V}|, C)` if :math:`l_\mathrm{in} = 0`, or a pair of these of
          sources and targets, whose features are of one kind; positions and image offsets in Å
        - **output:** :math:`(|\mathcal{V}|, (l_{\max}+1)^2, C)`, of the targets. If
          :obj:`return_attention_weights=True`, then :math:`(\mathrm{output},
          ((2, |\mathcal{E}|), (|\mathcal{E}|, H)))`
    """

    def __init__(
        self,
        channels: int,
        lmax: int,
        *,
        lmax_in: int | None = None,
        heads: int = 8,
        hidden_channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.lmax = lmax
        self.lmax_in = lmax if lmax_in is None else lmax_in
        self.heads = heads
        kwargs.setdefault("root_weight", False)
        # The norms need no weights of their own, since linear maps follow.
        self.norm_attention = RMSNorm(channels, self.lmax_in, affine=False)
        self.attention = E2FormerAttention(
            channels, channels, lmax, lmax_in=lmax_in, heads=heads, **kwargs
        )
        self.norm_feed_forward = RMSNorm(channels, lmax, affine=False)
        self.feed_forward = GatedFeedForward(channels, lmax, hidden_channels)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.attention.reset_parameters()
        self.feed_forward.reset_parameters()

    @overload
    def forward(
        self,
        x: Tensor | PairTensor,
        pos: Tensor | PairTensor,
        edge_index: Adj,
        z: Tensor | PairTensor | None = None,
        edge_shift: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: Literal[False] = False,
        *,
        strain: Tensor | None = None,
        batch: Tensor | None = None,
        geometry: SharedGeometry | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor | PairTensor,
        pos: Tensor | PairTensor,
        edge_index: Adj,
        z: Tensor | PairTensor | None = None,
        edge_shift: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        *,
        return_attention_weights: Literal[True],
        strain: Tensor | None = None,
        batch: Tensor | None = None,
        geometry: SharedGeometry | None = None,
    ) -> tuple[Tensor, tuple[Adj, Tensor]]: ...

    def forward(
        self,
        x: Tensor | PairTensor,
        pos: Tensor | PairTensor,
        edge_index: Adj,
        z: Tensor | PairTensor | None = None,
        edge_shift: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool = False,
        *,
        strain: Tensor | None = None,
        batch: Tensor | None = None,
        geometry: SharedGeometry | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Adj, Tensor]]:
        r"""Runs the forward pass of the module; see :meth:`E2FormerAttention.forward`.

        Blocks of a model share the geometry of edges through :obj:`geometry`.
        """
        sources, targets = as_pair(x, "x")
        one_kind = sources is targets
        sources = self._features("x", sources)
        targets = sources if one_kind else self._features("x[1]", targets)
        normed, residual = self.norm_attention(targets, with_input=True)
        with nullcontext() if geometry is None else geometry:
            result = self.attention(
                normed if one_kind else (self.norm_attention(sources), normed),
                pos,
                edge_index,
                z,
                edge_shift,
                edge_attr,
                size,
                return_attention_weights,
                strain=strain,
                batch=batch,
                residual=with_degrees(residual, self.lmax),
            )
        out = result[0] if return_attention_weights else result
        normed, residual = self.norm_feed_forward(out, with_input=True)
        out = self.feed_forward(normed, residual)
        return (out, result[1]) if return_attention_weights else out

    def _features(self, name: str, x: Tensor) -> Tensor:
        check_tensor(name, x)
        return x.unsqueeze(1) if x.dim() == 2 and self.lmax_in == 0 else x

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.channels}, lmax={self.lmax}, heads={self.heads})"
