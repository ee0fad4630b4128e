"""The E2Former-V2 backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional.degree_linear import add_to_scalars
from ..functional.inputs import PairTensor, as_pair
from ..functional.paths import as_orders
from ..functional.sharing import SharedGeometry
from ..nn import E2FormerBlock, E2FormerConv, RMSNorm
from .embedding import AtomEmbedding
from .graphs import GraphInput, check_atoms, sorted_edges

_LMAX = 2


class E2Former(nn.Module):
    r"""The backbone of the `"E2Former-V2" <https://arxiv.org/abs/2601.16622>`_ paper: embeddings
    of elements and of the surroundings of each atom, transformer blocks with equivariant
    attention, and a final norm.

    .. math::
        x_i^{(0)} &= t_{z_i} \oplus \mathrm{Conv}(t)_i

        x_i^{(n+1)} &= \mathrm{Block}_n(x^{(n)})_i

    The last block computes no degrees above :obj:`lmax_out`, which nothing reads.

    The element's own embedding :math:`t_{z_i}` keeps a lone atom from being a zero vector. The
    initial features of all degrees come from the same on-the-fly operation as the rest, so
    that no edge features are stored.

    With the attribute :obj:`activation_checkpointing` set to :obj:`True`, nothing of the inside of
    a block is kept for the backward pass, which computes it again: less memory for training, and
    for the forces of large systems.

    Args:
        hidden_channels (int, optional): Channels :math:`C` of each row. (default: :obj:`128`)
        num_layers (int, optional): Number of blocks. (default: :obj:`4`)
        lmax (int, optional): Highest degree. (default: :obj:`2`)
        lmax_out (int, optional): Highest degree of the output. (default: :obj:`lmax`)
        heads (int, optional): Number of heads. (default: :obj:`8`)
        order (int or set, optional): The degrees of the harmonics in the attention.
            (default: :obj:`(0, 1)`)
        cutoff (float, optional): Cutoff in Å. (default: :obj:`5.0`)
        num_radial (int, optional): Number of B-splines of each radial function.
            (default: :obj:`32`)
        pair_radial (bool, optional): If set to :obj:`False`, radial functions are the same for all
            pairs of elements, which then differ by their features alone: fewer parameters, and
            better ones where frames with some elements are few. (default: :obj:`True`)
        qk_channels (int, optional): Size of queries and keys of each head.
            (default: :obj:`16`)
        qk_norm (bool, optional): If set to :obj:`True`, queries and keys are normalised, which
            keeps attention from saturating where learning rates are high.
            (default: :obj:`False`)
        ffn_channels (int, optional): Size of the hidden rows of the feed-forward networks.
            (default: :obj:`hidden_channels`)
        avg_num_neighbors (float, optional): Typical number of neighbours, which scales the
            embedding of the surroundings. (default: :obj:`16.0`)
        directional (bool, optional): If set to :obj:`True`, attention sees the direction of
            edges. (default: :obj:`False`)
        dropout (float, optional): Dropout probability of the attention weights.
            (default: :obj:`0.0`)
        charge (bool, optional): If set to :obj:`True`, the model reads the total charge of each
            graph. (default: :obj:`False`)
        spin (bool, optional): If set to :obj:`True`, the model reads the spin multiplicity of
            each graph. (default: :obj:`False`)
        parity (str, optional): :obj:`"so3"`, or :obj:`"o3"` for features of natural parity.
            (default: :obj:`"so3"`)
        final_norm (bool, optional): If set to :obj:`False`, features are returned without the
            final norm, with their lengths, which tell, *e.g.*, the density of the surroundings.
            (default: :obj:`True`)
        elements (list[int], optional): The atomic numbers that can occur, to fix shapes for
            compilation. (default: :obj:`None`)
        algorithm (str, optional): As in :class:`~e2former_pyg.nn.E2FormerAttention`.
            (default: :obj:`"direct"`)
        backend (str, optional): As in :class:`~e2former_pyg.nn.E2FormerAttention`.
            (default: :obj:`"auto"`)

    Shapes:
        - **input:** atomic numbers :math:`(N)`, positions in Å :math:`(N, 3)`, graph of each
          atom :math:`(N)` *(optional)*
        - **output:** :math:`(N, (l_\mathrm{out}+1)^2, C)`
    """

    def __init__(
        self,
        hidden_channels: int = 128,
        num_layers: int = 4,
        lmax: int = _LMAX,
        *,
        lmax_out: int | None = None,
        heads: int = 8,
        order: int | Iterable[int] = (0, 1),
        cutoff: float = 5.0,
        num_radial: int = 32,
        pair_radial: bool = True,
        qk_channels: int = 16,
        qk_norm: bool = False,
        ffn_channels: int | None = None,
        avg_num_neighbors: float = 16.0,
        directional: bool = False,
        dropout: float = 0.0,
        charge: bool = False,
        spin: bool = False,
        parity: str = "so3",
        final_norm: bool = True,
        elements: Sequence[int] | None = None,
        algorithm: str = "direct",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"`num_layers` must not be negative, got {num_layers}")
        if not 0 <= lmax <= 8:
            raise ValueError(f"`lmax` must lie in 0..8, got {lmax}")
        if lmax_out is None:
            lmax_out = lmax
        if not 0 <= lmax_out <= lmax:
            raise ValueError(f"`lmax_out` must lie in 0..{lmax}, up to `lmax`, got {lmax_out}")
        for name, size in (
            ("hidden_channels", hidden_channels),
            ("heads", heads),
            ("qk_channels", qk_channels),
            ("ffn_channels", hidden_channels if ffn_channels is None else ffn_channels),
        ):
            if size < 1:
                raise ValueError(f"`{name}` must be positive, got {size}")
        if hidden_channels % heads != 0:
            raise ValueError(
                f"`heads` must divide `hidden_channels` = {hidden_channels}, got {heads}"
            )
        orders = as_orders(order)
        self.config = {
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "lmax": lmax,
            "lmax_out": lmax_out,
            "heads": heads,
            "order": list(orders),
            "cutoff": cutoff,
            "num_radial": num_radial,
            "pair_radial": pair_radial,
            "qk_channels": qk_channels,
            "qk_norm": qk_norm,
            "ffn_channels": ffn_channels,
            "avg_num_neighbors": avg_num_neighbors,
            "directional": directional,
            "dropout": dropout,
            "charge": charge,
            "spin": spin,
            "parity": parity,
            "final_norm": final_norm,
            "elements": None if elements is None else sorted(elements),
            "algorithm": algorithm,
            "backend": backend,
        }
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.lmax = lmax
        self.lmax_out = lmax_out
        self.cutoff = float(cutoff)
        self.lmax_harmonics = max(lmax, *orders)
        degrees = [lmax] * num_layers + [lmax_out]  # of the features before and after each block
        shared: dict[str, Any] = {
            "heads": heads,
            "cutoff": cutoff,
            "num_radial": num_radial,
            "pair_radial": pair_radial,
            "parity": parity,
            "elements": elements,
            "algorithm": algorithm,
            "backend": backend,
        }
        self.embedding = AtomEmbedding(hidden_channels, charge=charge, spin=spin)
        self.surroundings = E2FormerConv(
            hidden_channels,
            hidden_channels,
            degrees[0],
            lmax_in=0,
            order=range(degrees[0] + 1),
            avg_num_neighbors=avg_num_neighbors,
            root_weight=False,
            **{("groups" if key == "heads" else key): value for key, value in shared.items()},
        )
        self.blocks = nn.ModuleList(
            E2FormerBlock(
                hidden_channels,
                after,
                lmax_in=before,
                hidden_channels=ffn_channels,
                order=orders,
                qk_channels=qk_channels,
                qk_norm=qk_norm,
                directional=directional,
                dropout=dropout,
                **shared,
            )
            for before, after in pairwise(degrees)
        )
        self.norm = RMSNorm(hidden_channels, lmax_out) if final_norm else None
        self.activation_checkpointing = False

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.embedding.reset_parameters()
        self.surroundings.reset_parameters()
        for block in self.blocks:
            block.reset_parameters()  # type: ignore[operator]
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        *,
        edge_index: Tensor | None = None,
        edge_shift: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
        batch_size: int | None = None,
        strain: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            z (torch.Tensor): The atomic numbers.
            pos (torch.Tensor): The positions in Å.
            batch (torch.Tensor, optional): The graph of each atom. (default: :obj:`None`, one
                graph)
            edge_index (torch.Tensor, optional): All pairs within the cutoff, and longer ones at
                will. (default: :obj:`None`, built by :meth:`~e2former_pyg.graph.radius_graph`)
            edge_shift (torch.Tensor, optional): The image offset of each edge's source in Å.
                (default: :obj:`None`)
            cell (torch.Tensor, optional): The cell of each graph in Å, vectors in rows.
                (default: :obj:`None`)
            pbc (torch.Tensor, optional): The periodic directions of each graph.
                (default: :obj:`None`, all of them with a cell)
            charge (torch.Tensor, optional): The total charge of each graph in e.
                (default: :obj:`None`, neutral)
            spin (torch.Tensor, optional): The spin multiplicity of each graph.
                (default: :obj:`None`, a singlet)
            batch_size (int, optional): The number of graphs. (default: :obj:`None`)
            strain (torch.Tensor, optional): The strain of each graph, :math:`(B, 3, 3)`.
                (default: :obj:`None`)
        """
        check_atoms(z, pos, batch, batch_size)
        inputs = GraphInput(
            z, pos, batch, edge_index, edge_shift, cell, pbc, charge, spin, batch_size
        )
        graph, num_graphs = inputs.graph_of_atom()
        edges, shift = sorted_edges(inputs, self.cutoff, num_graphs)
        scalars = self.embedding(z, graph, num_graphs, charge, spin)
        return self.layers(scalars, pos, edges, z, shift, strain=strain, batch=graph)

    def layers(
        self,
        scalars: Tensor | PairTensor,
        pos: Tensor | PairTensor,
        edges: Tensor,
        z: Tensor | PairTensor,
        shift: Tensor | None = None,
        *,
        strain: Tensor | None = None,
        batch: Tensor | None = None,
        exchange: Callable[[Tensor], PairTensor] | None = None,
    ) -> Tensor:
        r"""What follows the embedding of the elements, :obj:`scalars`. It also serves a process
        that owns some of the atoms and knows others of which it needs the features, its ghosts:
        :obj:`scalars`, :obj:`pos` and :obj:`z` are then pairs of all atoms and of its own, edges
        lead from all atoms to its own, and :obj:`exchange` is called with features of its own
        atoms before each block, for those of all atoms and of its own.
        """
        with SharedGeometry(self.lmax_harmonics) as geometry:
            x = self.surroundings(scalars, pos, edges, z, shift, strain=strain, batch=batch)
            x = add_to_scalars(x, as_pair(scalars, "scalars")[1])
            for block in self.blocks:
                # Given, not only entered: a checkpointed block runs again outside.
                run: Callable = block
                if self.activation_checkpointing and torch.is_grad_enabled():
                    # Nothing else is random, and no state can be read while a graph is captured.
                    random = self.training and self.config["dropout"] != 0
                    run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=random)
                given = x if exchange is None else exchange(x)
                x = run(given, pos, edges, z, shift, strain=strain, batch=batch, geometry=geometry)
        return x if self.norm is None else self.norm(x)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.hidden_channels}, num_layers={self.num_layers}, "
            f"lmax={self.lmax}, cutoff={self.cutoff})"
        )


def set_lmax_out(backbone_kwargs: dict[str, Any], degree: int) -> None:
    """Sets the degree of the output to what a model's heads read, as far as a backbone with these
    arguments has it, unless they name one.
    """
    # Those who read signatures, such as jsonargparse, pass the backbone's own default on.
    if backbone_kwargs.get("lmax_out") is None:
        backbone_kwargs["lmax_out"] = min(degree, backbone_kwargs.get("lmax", _LMAX))
