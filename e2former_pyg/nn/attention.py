"""The E2Former-V2 attention as a PyG layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch_geometric.typing import Adj
from torch_geometric.utils import is_sparse

from ..functional import equivariant_attention
from ..functional.dropout import dropout_mask
from ..functional.edgewise import edge_rows, segment_sink_softmax
from ..functional.geometry import EdgeGeometry, edge_geometry, edge_vectors
from ..functional.inputs import PairTensor, node_strain
from ..functional.node_norm import normalize
from ..functional.paths import as_orders
from ..functional.torch_backend import Spec, attention_logits, directional_term
from ..graph import CSRNeighborhood
from ..radial import RadialSplines, evaluate_splines, spline_cells
from .invariants import BilinearInvariants
from .linear import DegreeLinear, check_addend
from .message_passing import EquivariantMessagePassing, OptPairTensor

_QK_NORM_EPS = 1e-5


class E2FormerAttention(EquivariantMessagePassing):
    r"""The SO(3)-equivariant attention of the `"E2Former-V2"
    <https://arxiv.org/abs/2601.16622>`_ paper, evaluated on the fly over each node's
    neighbourhood,

    .. math::
        s_{ijh} &= g^1_h(r_{ij}) \Big( \frac{\mathbf{q}_{ih}^{\top} \mathbf{k}_{jh}}{\sqrt{D}}
        + \sum_{\ell \ge 1, m} Y^\ell_m(\hat{\mathbf{r}}_{ij})\, u_{i, \ell m h} \Big)
        + g^0_h(r_{ij}) + \mathbf{w}_h^{\top} \mathbf{e}_{ij}

        \alpha_{ijh} &= \frac{\mathrm{env}(r_{ij}) \exp(s_{ijh})}
        {\exp(b_h) + \sum_{j \in \mathcal{N}(i)} \mathrm{env}(r_{ij}) \exp(s_{ijh})}

        \mathbf{y}_i^{(l_1, \ell, l_3)} &= \sum_{j \in \mathcal{N}(i)}
        \alpha_{ijh}\, g^2_{h\ell}(r_{ij})
        \left[ \mathbf{v}_{jh}^{(l_1)} \otimes Y^\ell(\hat{\mathbf{r}}_{ij}) \right]^{(l_3)}

        \mathbf{x}'^{(l_3)}_i &= \frac{1}{\sqrt{\# \mathrm{paths}}} \sum_{(l_1, \ell)}
        \mathbf{W}_{l_1 \ell l_3}\, \mathbf{y}_i^{(l_1, \ell, l_3)} + \mathbf{W}_{l_3} \mathbf{x}_i

    where :math:`\mathbf{r}_{ij} = \mathbf{p}_i - \mathbf{p}_j - \mathbf{s}_{ij}`. Queries and
    keys are invariants of all degrees (:class:`BilinearInvariants`), values a degree-wise linear
    map to :obj:`out_channels`; :math:`b_h` is a learned sink, so that weights fade smoothly as
    the last neighbour leaves; :math:`g` are cubic B-splines in :math:`r` whose coefficients a
    small network gives for each pair of elements. Nothing with an edge dimension times a feature
    dimension is stored, and derivatives are exact to second order. Logits are of fourth degree in
    the input: normalise it first, as :class:`E2FormerBlock` does, or set :obj:`qk_norm`.

    Args:
        in_channels (int or tuple): Size of each input row, or a tuple of those of source and
            target nodes.
        out_channels (int): Size of each output row, divisible by :obj:`heads`.
        lmax (int): Highest degree of the output.
        lmax_in (int, optional): Highest degree of the input. (default: :obj:`lmax`)
        heads (int, optional): Number of heads. (default: :obj:`8`)
        qk_channels (int, optional): Size :math:`D` of queries and keys of each head.
            (default: :obj:`16`)
        qk_norm (bool, optional): If set to :obj:`True`, the queries and keys of each head are
            divided by their root mean square. This keeps attention from saturating where learning
            rates are high; :math:`g^1` sets the scale of the logits. (default: :obj:`False`)
        order (int or set, optional): The degrees :math:`\ell` of the harmonics; :obj:`n` means
            :obj:`{n}`. (default: :obj:`(0, 1)`)
        cutoff (float, optional): Cutoff :math:`r_c` in Å; longer edges contribute exactly zero.
            (default: :obj:`5.0`)
        num_radial (int, optional): Number of B-splines of each radial function.
            (default: :obj:`16`)
        pair_radial (bool, optional): If set to :obj:`False`, radial functions are the same for all
            pairs of elements, which then differ by their features alone: fewer parameters, and
            better ones where frames with some elements are few. (default: :obj:`True`)
        edge_dim (int, optional): Size of edge features, which bias the logits.
            (default: :obj:`None`)
        directional (bool, optional): If set to :obj:`True`, attention sees the direction of
            edges through :math:`\mathbf{u}_i`, a degree-wise linear map of the target features.
            (default: :obj:`False`)
        dropout (float, optional): Dropout probability of the attention weights in training.
            (default: :obj:`0.0`)
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
          :math:`(|\mathcal{V_t}|, (l_{\max}+1)^2, F_{out})` if bipartite. If
          :obj:`return_attention_weights=True`, then :math:`(\mathrm{output},
          ((2, |\mathcal{E}|), (|\mathcal{E}|, H)))`, the weights in the order of the edges
          given; for each target they sum to less than 1.
    """

    _group_name = "heads"

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        lmax: int,
        *,
        lmax_in: int | None = None,
        heads: int = 8,
        qk_channels: int = 16,
        qk_norm: bool = False,
        order: int | Iterable[int] = (0, 1),
        cutoff: float = 5.0,
        num_radial: int = 16,
        pair_radial: bool = True,
        edge_dim: int | None = None,
        directional: bool = False,
        dropout: float = 0.0,
        root_weight: bool = True,
        parity: str = "so3",
        elements: Sequence[int] | None = None,
        algorithm: str = "direct",
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        if heads < 1 or out_channels % heads != 0:
            raise ValueError(f"`heads` must divide `out_channels` = {out_channels}, got {heads}")
        if qk_channels < 1:
            raise ValueError(f"`qk_channels` must be positive, got {qk_channels}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
        orders = as_orders(order)
        super().__init__(
            in_channels,
            out_channels,
            lmax,
            lmax_in=lmax_in,
            num_groups=heads,
            order=orders,
            functions=heads * (2 + len(orders)),
            value_channels=out_channels,
            cutoff=cutoff,
            num_radial=num_radial,
            pair_radial=pair_radial,
            edge_dim=edge_dim,
            edge_functions=heads,
            root_weight=root_weight,
            parity=parity,
            elements=elements,
            algorithm=algorithm,
            backend=backend,
            **kwargs,
        )
        self.heads = heads
        self.qk_channels = qk_channels
        self.qk_norm = qk_norm
        self.directional = directional
        self.dropout = float(dropout)
        source, target = self._channels
        size = heads * qk_channels
        # One network gives both where one kind of nodes is both source and target.
        self.lin_query_key = self.lin_query = self.lin_key = None
        if isinstance(in_channels, int):
            self.lin_query_key = BilinearInvariants(source, 2 * size, self.lmax_in)
        else:
            self.lin_query = BilinearInvariants(target, size, self.lmax_in)
            self.lin_key = BilinearInvariants(source, size, self.lmax_in)
        self.lin_value = DegreeLinear(
            source, out_channels, self.lmax_value, bias=False, lmax_in=self.lmax_in
        )
        self.lin_direction = None
        if directional:
            self.lin_direction = DegreeLinear(target, heads, self.lmax_in, bias=False)
        self.sink = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        for module in (self.lin_query_key, self.lin_query, self.lin_key):
            if module is not None:
                module.reset_parameters()
        nn.init.zeros_(self.sink)

    @overload
    def forward(
        self,
        x: Tensor | OptPairTensor,
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
        residual: Tensor | None = None,
    ) -> Tensor: ...

    @overload
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
        return_attention_weights: Literal[True],
        strain: Tensor | None = None,
        batch: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Adj, Tensor]]: ...

    def forward(
        self,
        x: Tensor | OptPairTensor,
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
        residual: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Adj, Tensor]]:
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
            return_attention_weights (bool, optional): If set to :obj:`True`, also returns
                :obj:`(edge_index, alpha)`, the weights of each edge and head before dropout.
                :obj:`edge_index` is the one given, or for a sparse adjacency the
                :math:`(2, |\mathcal{E}|)` edges in the order of :obj:`alpha`.
                (default: :obj:`False`)
            strain (torch.Tensor, optional): The strain of each graph, which deforms positions
                and shifts: the derivative of an energy by it is the virial.
                (default: :obj:`None`)
            batch (torch.Tensor, optional): The graph of each target node, needed for the strains
                of several graphs. (default: :obj:`None`)
            residual (torch.Tensor, optional): Features of the output's shape that are added to it,
                on a GPU in the same pass. (default: :obj:`None`)
        """
        graph = self._prepare(x, pos, edge_index, z, edge_shift, edge_attr, size)
        x_src, x_dst = graph.x
        if x_dst is None:
            raise ValueError("`x` must hold target features (x[1]), which make the queries")
        radial = self._splines(graph.z)
        shape = x_dst.size(0), (self.lmax + 1) ** 2, self.out_channels
        check_addend("residual", residual, shape, self.mix.weight[0])
        dropout = self.dropout if self.training else 0.0
        seed = None
        if dropout > 0:
            seed = torch.randint(2**62, (), device="cpu").to(x_src.device)
        q, k, x_src = self._query_key(x_src, x_dst)
        u = None if self.lin_direction is None else self.lin_direction(x_dst)
        inputs = {
            "q": (None, q),
            "k": (k, None),
            "u": (None, u),
            "pos": graph.pos,
            "type": (radial.source_type, radial.target_type),
            "radial": radial,
            "strain": strain,
            "batch": (None, batch),
            "edge_shift": graph.edge_shift,
            "edge_bias": graph.edge_bias,
        }
        rows = self.propagate(
            graph.edge_index,
            size=None,
            v=(self.lin_value(x_src), None),
            neighborhood=graph.neighborhood,
            seed=seed,
            **inputs,
        )
        out = self._finish(rows, x_dst, residual)
        if not return_attention_weights:
            return out
        alpha = self.edge_updater(graph.given, **inputs)
        # A sparse adjacency keeps no order of edges for the weights to follow.
        return out, (graph.given if is_sparse(edge_index) else edge_index, alpha)

    def _query_key(self, x_src: Tensor, x_dst: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the targets and keys of the sources, ``[N, heads, qk_channels]``, and the
        sources, for their values.
        """
        if self.lin_query_key is None:
            assert self.lin_query is not None and self.lin_key is not None
            keys, sources = self.lin_key(x_src, with_input=True)
            return self._by_head(self.lin_query(x_dst)), self._by_head(keys), sources
        both, sources = self.lin_query_key(x_src, with_input=True)
        q, k = self._by_head(both).chunk(2, dim=1)
        if x_src is not x_dst:
            q = self._by_head(self.lin_query_key(x_dst)).chunk(2, dim=1)[0]
        return q, k, sources

    def _by_head(self, invariants: Tensor) -> Tensor:
        rows = invariants.unflatten(-1, (-1, self.qk_channels))
        if not self.qk_norm:
            return rows
        return normalize(rows.reshape(-1, 1, self.qk_channels), _QK_NORM_EPS).view(rows.shape)

    def _edge_attention(
        self,
        q_i: Tensor,
        k_j: Tensor,
        u_i: Tensor | None,
        pos_i: Tensor,
        pos_j: Tensor,
        type_i: Tensor,
        type_j: Tensor,
        radial: RadialSplines,
        strain: Tensor | None,
        batch_i: Tensor | None,
        edge_shift: Tensor | None,
        edge_bias: Tensor | None,
        index: Tensor,
        num_targets: int,
    ) -> tuple[Spec, EdgeGeometry, Tensor, Tensor]:
        """Geometry, attention weights and radial weights of edges."""
        spec = self._spec(q_i.dtype, self.lmax_in if u_i is not None else 0)
        vectors = edge_vectors(
            pos_i, pos_j, edge_shift, node_strain(strain, batch_i, pos_i.size(0), pos_i.dtype)
        )
        geometry = edge_geometry(vectors, self.cutoff, spec.lmax_harmonics, spec.dtype)
        polynomials = radial.cell_polynomials(spec.dtype)
        functions = evaluate_splines(
            polynomials,
            *spline_cells(geometry.length, radial.num_cells, self.cutoff),
            type_i,
            type_j,
        )
        qk = (q_i.to(spec.dtype) * k_j.to(spec.dtype)).sum(-1)[..., None, None]
        qk = directional_term(
            qk * self.qk_channels**-0.5,
            geometry.harmonics[..., None, None],
            None if u_i is None else u_i.to(spec.dtype).unsqueeze(1),
        )
        bias = None if edge_bias is None else edge_bias.to(spec.dtype)[:, None, None]
        logits, g2 = attention_logits(functions[..., None, None], qk, bias)
        logits, g2 = logits[..., 0, 0], g2[..., 0, 0]
        sink = self.sink.to(spec.dtype)
        alpha = segment_sink_softmax(logits, geometry, sink, index, num_targets)
        return spec, geometry, alpha, g2

    def edge_update(
        self,
        q_i: Tensor,
        k_j: Tensor,
        u_i: Tensor | None,
        pos_i: Tensor,
        pos_j: Tensor,
        type_i: Tensor,
        type_j: Tensor,
        radial: RadialSplines,
        strain: Tensor | None,
        batch_i: Tensor | None,
        edge_shift: Tensor | None,
        edge_bias: Tensor | None,
        index: Tensor,
        size_i: int,
    ) -> Tensor:
        return self._edge_attention(
            *(q_i, k_j, u_i, pos_i, pos_j, type_i, type_j, radial),
            *(strain, batch_i, edge_shift, edge_bias, index, size_i),
        )[2]

    def message(
        self,
        q_i: Tensor,
        k_j: Tensor,
        u_i: Tensor | None,
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
        seed: Tensor | None,
        index: Tensor,
        size_i: int,
    ) -> Tensor:
        spec, geometry, alpha, g2 = self._edge_attention(
            *(q_i, k_j, u_i, pos_i, pos_j, type_i, type_j, radial),
            *(strain, batch_i, edge_shift, edge_bias, index, size_i),
        )
        if seed is not None:
            edge = torch.arange(index.numel(), device=index.device)
            alpha = alpha * dropout_mask(seed, edge, self.heads, self.dropout, alpha.dtype)
        weights = alpha.unsqueeze(1) * g2
        return edge_rows(spec, weights, v_j.to(spec.dtype), geometry.harmonics).to(v_j.dtype)

    def message_and_aggregate(
        self,
        edge_index: Adj,
        q: tuple[None, Tensor],
        k: tuple[Tensor, None],
        v: tuple[Tensor, None],
        u: tuple[None, Tensor | None],
        pos: PairTensor,
        radial: RadialSplines,
        neighborhood: CSRNeighborhood,
        strain: Tensor | None,
        batch: OptPairTensor,
        edge_shift: Tensor | None,
        edge_bias: Tensor | None,
        seed: Tensor | None,
    ) -> Tensor:
        return equivariant_attention(
            q[1],
            k[0],
            v[0],
            pos,
            neighborhood,
            radial,
            orders=self.orders,
            sink=self.sink,
            lmax=self.lmax,
            parity=self.parity,
            u=u[1],
            edge_shift=edge_shift,
            strain=strain,
            batch=batch[1],
            edge_bias=edge_bias,
            dropout=0.0 if seed is None else self.dropout,
            seed=seed,
            # Weights that are learned keep them for their gradient.
            keep_rows=self.mix.weight[0].requires_grad,
            algorithm=self.algorithm,
            backend=self.backend,
        )
