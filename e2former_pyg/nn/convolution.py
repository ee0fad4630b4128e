"""The E2Former convolution as a PyG layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch_geometric.typing import Adj

from ..functional import equivariant_convolution
from ..functional.edgewise import edge_rows
from ..functional.geometry import edge_geometry, edge_vectors
from ..functional.inputs import PairTensor, node_strain
from ..functional.paths import as_orders
from ..graph import CSRNeighborhood
from ..radial import RadialSplines, evaluate_splines, spline_cells
from .linear import with_degrees
from .message_passing import EquivariantMessagePassing, OptPairTensor


class E2FormerConv(EquivariantMessagePassing):
    r"""The SO(3)-equivariant convolution of the `"E2Former"
    <https://arxiv.org/abs/2501.19216>`_ and `"E2Former-V2" <https://arxiv.org/abs/2601.16622>`_
    papers, evaluated on the fly over each node's neighbourhood,

    .. math::
        \mathbf{y}_i^{(l_1, \ell, l_3)} &= \frac{1}{\sqrt{\bar n}} \sum_{j \in \mathcal{N}(i)}
        \mathrm{env}(r_{ij})\, g_{h\ell}(r_{ij}; z_i, z_j)
        \left[ \mathbf{x}_j^{(l_1)} \otimes Y^\ell(\hat{\mathbf{r}}_{ij}) \right]^{(l_3)}

        \mathbf{x}'^{(l_3)}_i &= \frac{1}{\sqrt{\# \mathrm{paths}}} \sum_{(l_1, \ell)}
        \mathbf{W}_{l_1 \ell l_3}\, \mathbf{y}_i^{(l_1, \ell, l_3)} + \mathbf{W}_{l_3} \mathbf{x}_i

    where :math:`\mathbf{r}_{ij} = \mathbf{p}_i - \mathbf{p}_j - \mathbf{s}_{ij}`, the order
    :math:`\ell` runs over :obj:`order`, :math:`h` is the group of a channel, :math:`g` are cubic
    B-splines whose coefficients a small network gives for each pair of elements, and
    :math:`\mathrm{env}` is a smooth cutoff. Nothing with an edge dimension times a feature
    dimension is stored, and derivatives are exact to second order.

    Args:
        in_channels (int or tuple): Size of each input row, or a tuple of those of source and
            target nodes.
        out_channels (int): Size of each output row.
        lmax (int): Highest degree of the output.
        lmax_in (int, optional): Highest degree of the input. (default: :obj:`lmax`)
        groups (int, optional): Number of groups of channels with radial functions of their own,
            a divisor of the source channels. (default: :obj:`8`)
        order (int or set, optional): The degrees :math:`\ell` of the harmonics; :obj:`n` means
            :obj:`{n}`. (default: :obj:`(0, 1)`)
        cutoff (float, optional): Cutoff :math:`r_c` in Å; longer edges contribute exactly zero.
            (default: :obj:`5.0`)
        num_radial (int, optional): Number of B-splines of each radial function.
            (default: :obj:`16`)
        avg_num_neighbors (float, optional): Typical number of neighbours :math:`\bar n`.
            (default: :obj:`1.0`)
        pair_radial (bool, optional): If set to :obj:`False`, radial functions are the same for all
            pairs of elements, which then differ by their features alone: fewer parameters, and
            better ones where frames with some elements are few. (default: :obj:`True`)
        edge_dim (int, optional): Size of edge features, a linear map of which is added to the
            radial functions. (default: :obj:`None`)
        root_weight (bool, optional): If set to :obj:`False`, the layer does not add the
            transformed target features. (default: :obj:`True`)
        parity (str, optional): :obj:`"so3"` keeps all paths; :obj:`"o3"` only those with even
            :math:`l_1+\ell+l_3`, so that a mirrored input gives the mirrored output.
            (default: :obj:`"so3"`)
        elements (list[int], optional): The atomic numbers that can occur, to fix shapes for
            compilation. (default: :obj:`None`)
        algorithm (str, optional): :obj:`"direct"`, or :obj:`"factorized"`, the paper's: harmonics
            of edges are expanded in those of nodes, by the addition theorem and Wigner 6j
            recoupling. Both give the same function of the same parameters; the direct one is
            faster and takes less memory. (default: :obj:`"direct"`)
        backend (str, optional): :obj:`"auto"`, :obj:`"torch"` or :obj:`"triton"`. Never changes
            parameters or the :obj:`state_dict`. (default: :obj:`"auto"`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, (l_\mathrm{in}+1)^2, F_{in})`, or
          :math:`((|\mathcal{V_s}|, (l_\mathrm{in}+1)^2, F_s), (|\mathcal{V_t}|,
          (l_\mathrm{in}+1)^2, F_t))` if bipartite, :math:`(|\mathcal{V}|, F_{in})` if
          :math:`l_\mathrm{in} = 0`;
          positions in Å :math:`(|\mathcal{V}|, 3)`, a pair if bipartite;
          edge indices :math:`(2, |\mathcal{E}|)`;
          atomic numbers :math:`(|\mathcal{V}|)` *(optional)*;
          image offsets of the sources in Å :math:`(|\mathcal{E}|, 3)` *(optional)*;
          edge features :math:`(|\mathcal{E}|, D)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, (l_{\max}+1)^2, F_{out})` or
          :math:`(|\mathcal{V_t}|, (l_{\max}+1)^2, F_{out})` if bipartite
    """

    _group_name = "groups"

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        lmax: int,
        *,
        lmax_in: int | None = None,
        groups: int = 8,
        order: int | Iterable[int] = (0, 1),
        cutoff: float = 5.0,
        num_radial: int = 16,
        pair_radial: bool = True,
        avg_num_neighbors: float = 1.0,
        edge_dim: int | None = None,
        root_weight: bool = True,
        parity: str = "so3",
        elements: Sequence[int] | None = None,
        algorithm: str = "direct",
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        source = in_channels if isinstance(in_channels, int) else in_channels[0]
        if groups < 1 or source % groups != 0:
            raise ValueError(f"`groups` must divide `in_channels` = {source}, got {groups}")
        if not avg_num_neighbors > 0:
            raise ValueError(f"`avg_num_neighbors` must be positive, got {avg_num_neighbors}")
        orders = as_orders(order)
        functions = groups * len(orders)
        super().__init__(
            in_channels,
            out_channels,
            lmax,
            lmax_in=lmax_in,
            num_groups=groups,
            order=orders,
            functions=functions,
            value_channels=source,
            cutoff=cutoff,
            num_radial=num_radial,
            pair_radial=pair_radial,
            edge_dim=edge_dim,
            edge_functions=functions,
            root_weight=root_weight,
            parity=parity,
            elements=elements,
            algorithm=algorithm,
            backend=backend,
            **kwargs,
        )
        self.avg_num_neighbors = float(avg_num_neighbors)

    def forward(
        self,
        x: Tensor | OptPairTensor,
        pos: Tensor | PairTensor,
        edge_index: Adj,
        z: Tensor | PairTensor | None = None,
        edge_shift: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        *,
        strain: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): The node features.
            pos (torch.Tensor or (torch.Tensor, torch.Tensor)): The positions in Å.
            edge_index (torch.Tensor or EdgeIndex or SparseTensor): The edges, from sources in
                row 0 to targets in row 1.
            z (torch.Tensor or (torch.Tensor, torch.Tensor), optional): The atomic numbers.
                (default: :obj:`None`, one type of node)
            edge_shift (torch.Tensor, optional): The image offset of each edge's source in Å.
                (default: :obj:`None`)
            edge_attr (torch.Tensor, optional): The edge features. (default: :obj:`None`)
            size ((int, int), optional): The numbers of source and target nodes, checked against
                the features. (default: :obj:`None`)
            strain (torch.Tensor, optional): The strain of each graph, which deforms positions
                and shifts: the derivative of an energy by it is the virial.
                (default: :obj:`None`)
            batch (torch.Tensor, optional): The graph of each target node, needed for the strains
                of several graphs. (default: :obj:`None`)
        """
        graph = self._prepare(x, pos, edge_index, z, edge_shift, edge_attr, size)
        radial = self._splines(graph.z)
        rows = self.propagate(
            graph.edge_index,
            size=None,
            v=with_degrees(graph.x[0], self.lmax_value),
            pos=graph.pos,
            type=(radial.source_type, radial.target_type),
            radial=radial,
            neighborhood=graph.neighborhood,
            strain=strain,
            batch=(None, batch),
            edge_shift=graph.edge_shift,
            edge_bias=graph.edge_bias,
        )
        return self._finish(rows, graph.x[1], scale=self.avg_num_neighbors**-0.5)

    def message(
        self,
        v_j: Tensor,
        pos_i: Tensor,
        pos_j: Tensor,
        type_i: Tensor,
        type_j: Tensor,
        radial: RadialSplines,
        strain: Tensor | None,
        batch_i: Tensor | None,
        edge_shift: Tensor | None,
        edge_bias: Tensor | None,
    ) -> Tensor:
        spec = self._spec(v_j.dtype)
        vectors = edge_vectors(
            pos_i, pos_j, edge_shift, node_strain(strain, batch_i, pos_i.size(0), pos_i.dtype)
        )
        geometry = edge_geometry(vectors, self.cutoff, spec.lmax_harmonics, spec.dtype)
        polynomials = radial.cell_polynomials(spec.dtype)
        weights = evaluate_splines(
            polynomials,
            *spline_cells(geometry.length, radial.num_cells, self.cutoff),
            type_i,
            type_j,
        )
        if edge_bias is not None:
            weights = weights + edge_bias
        weights = weights * geometry.envelope.unsqueeze(-1)
        weights = weights.unflatten(-1, (-1, self.num_groups))
        return edge_rows(spec, weights, v_j.to(spec.dtype), geometry.harmonics).to(v_j.dtype)

    def message_and_aggregate(
        self,
        edge_index: Adj,
        v: Tensor,
        pos: PairTensor,
        radial: RadialSplines,
        neighborhood: CSRNeighborhood,
        strain: Tensor | None,
        batch: OptPairTensor,
        edge_shift: Tensor | None,
        edge_bias: Tensor | None,
    ) -> Tensor:
        return equivariant_convolution(
            v,
            pos,
            neighborhood,
            radial,
            orders=self.orders,
            lmax=self.lmax,
            parity=self.parity,
            edge_shift=edge_shift,
            strain=strain,
            batch=batch[1],
            edge_bias=edge_bias,
            algorithm=self.algorithm,
            backend=self.backend,
        )
