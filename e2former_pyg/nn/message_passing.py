"""What the equivariant layers share: how they enter PyG, and their radial functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj
from torch_geometric.utils import is_sparse, to_edge_index

from ..checks import (
    check_dtype,
    check_finite,
    check_floating,
    check_positive,
    check_shape,
    check_tensor,
)
from ..functional.inputs import PairTensor, as_pair, check_algorithm
from ..functional.paths import as_orders, coupling
from ..functional.torch_backend import Spec
from ..graph import CSRNeighborhood
from ..radial import RadialNetwork, RadialSplines
from .linear import DegreeLinear, PathLinear, with_degrees

OptPairTensor = tuple[Tensor, Tensor | None]


class Graph(NamedTuple):
    """The validated input of a layer."""

    x: OptPairTensor
    pos: PairTensor
    z: PairTensor
    given: Tensor
    """The edges as given."""
    edge_index: Tensor
    """What goes to ``propagate``: sorted for the fused route, as given for the edge-wise one."""
    neighborhood: CSRNeighborhood
    edge_shift: Tensor | None
    edge_bias: Tensor | None


class EquivariantMessagePassing(MessagePassing):
    r"""Base class of :class:`E2FormerConv` and :class:`E2FormerAttention`.

    The forward pass of a layer validates its input and hands the fused operation to
    :meth:`propagate` as :meth:`message_and_aggregate`, on an
    :class:`~torch_geometric.EdgeIndex` sorted by target. Explainers and message hooks see
    :meth:`message` instead, edge by edge in the caller's order.
    """

    SUPPORTS_FUSED_EDGE_INDEX = True

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        lmax: int,
        *,
        lmax_in: int | None,
        num_groups: int,
        order: int | Iterable[int],
        functions: int,
        value_channels: int,
        cutoff: float,
        num_radial: int,
        pair_radial: bool,
        edge_dim: int | None,
        edge_functions: int,
        root_weight: bool,
        parity: str,
        elements: Sequence[int] | None,
        algorithm: str,
        backend: str,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("flow", "source_to_target") != "source_to_target":
            raise ValueError(
                f"`flow` must be 'source_to_target', got {kwargs['flow']!r}; "
                "flip `edge_index` instead"
            )
        if kwargs.setdefault("aggr", "sum") not in ("sum", "add"):
            raise ValueError(f"`aggr` must be 'sum', got {kwargs['aggr']!r}")
        if kwargs.get("decomposed_layers", 1) != 1:
            raise ValueError(f"`decomposed_layers` must be 1, got {kwargs['decomposed_layers']}")
        super().__init__(node_dim=0, **kwargs)
        check_algorithm(algorithm, backend)
        if not isinstance(in_channels, int) and len(in_channels) != 2:
            raise ValueError(
                f"`in_channels` must be a number or those of sources and targets, got {in_channels}"
            )
        for channels in (in_channels,) if isinstance(in_channels, int) else in_channels:
            check_positive(in_channels=channels)
        check_positive(out_channels=out_channels)

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.lmax = lmax
        self.lmax_in = lmax if lmax_in is None else lmax_in
        self.num_groups = num_groups
        self.orders = as_orders(order)
        self.cutoff = float(cutoff)
        self.edge_dim = edge_dim
        self.root_weight = root_weight
        self.parity = parity
        self.algorithm = algorithm
        self.backend = backend

        target = self._channels[1]
        paths = coupling(self.lmax_in, lmax, self.orders, parity).paths
        # Of the sources, degrees that no path leads from are not read.
        self.lmax_value = max(path.degree_in for path in paths)
        self.coupling = coupling(self.lmax_value, lmax, self.orders, parity)
        self.radial = RadialNetwork(
            functions, num_radial, cutoff, elements=elements, pairs=pair_radial
        )
        self.mix = PathLinear(value_channels, out_channels, self.coupling)
        self.lin_edge = (
            None if edge_dim is None else nn.Linear(edge_dim, edge_functions, bias=False)
        )
        self.lin_root = None
        if root_weight:
            self.lin_root = DegreeLinear(
                target, out_channels, min(lmax, self.lmax_in), lmax_in=self.lmax_in
            )

    @property
    def _channels(self) -> tuple[int, int]:
        """Channels of sources and targets."""
        if isinstance(self.in_channels, int):
            return self.in_channels, self.in_channels
        return self.in_channels[0], self.in_channels[1]

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        for module in self.children():
            if isinstance(module, (RadialNetwork, PathLinear, DegreeLinear, nn.Linear)):
                module.reset_parameters()

    # Input ###################################################################

    def _prepare(
        self,
        x: Tensor | OptPairTensor,
        pos: Tensor | PairTensor,
        edge_index: Adj,
        z: Tensor | PairTensor | None,
        edge_shift: Tensor | None,
        edge_attr: Tensor | None,
        size: tuple[int, int] | None,
    ) -> Graph:
        x_src, x_dst = as_pair(x, "x")
        pos_src, pos_dst = as_pair(pos)
        for name, tensor in (("x", x_src), ("pos", pos_src), ("pos", pos_dst)):
            check_tensor(name, tensor)
        sizes = (x_src.size(0), pos_dst.size(0))
        if size is not None and tuple(size) != sizes:
            raise ValueError(f"`size` must be (sources, targets) = {sizes}, got {tuple(size)}")

        for tensor, count in zip((pos_src, pos_dst), sizes, strict=True):
            check_shape("pos", tensor, count, 3)
            check_floating("pos", tensor)
            check_finite("pos", tensor)
        channels = self._channels
        same = x_dst is x_src and channels[0] == channels[1]
        x_src = self._check_x(x_src, "x", channels[0])
        if same:
            x_dst = x_src
        elif x_dst is not None:
            x_dst = self._check_x(x_dst, "x[1]", channels[1])
        if x_dst is not None:
            check_shape("x" if same else "x[1]", x_dst, sizes[1], *x_dst.shape[1:])
        if z is None:
            z_src = pos_src.new_zeros(sizes[0], dtype=torch.long)
            z = z_src if pos_src is pos_dst else (z_src, z_src.new_zeros(sizes[1]))
        z_src, z_dst = as_pair(z, "z")
        check_shape("z", z_src, sizes[0])
        check_shape("z", z_dst, sizes[1])

        if is_sparse(edge_index):  # `adj_t`: rows are targets
            (row, col), _ = to_edge_index(edge_index)
            edge_index = torch.stack([col, row])
        neighborhood = CSRNeighborhood.from_edge_index(edge_index, sizes)
        num_edges = neighborhood.num_edges
        if edge_shift is not None:
            check_shape("edge_shift", edge_shift, num_edges, 3)
            check_floating("edge_shift", edge_shift)
            check_finite("edge_shift", edge_shift)
        return Graph(
            (x_src, x_dst),
            (pos_src, pos_dst),
            (z_src, z_dst),
            edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index,
            self._route(edge_index, neighborhood, sizes),
            neighborhood,
            edge_shift,
            self._edge_bias(edge_attr, num_edges),
        )

    def _check_x(self, x: Tensor, name: str, channels: int) -> Tensor:
        check_tensor(name, x)
        if x.dim() == 2 and self.lmax_in == 0:
            x = x.unsqueeze(1)
        check_shape(name, x, "N", (self.lmax_in + 1) ** 2, channels)
        check_floating(name, x)
        check_dtype(name, x, self.mix.weight[0].dtype)
        return x

    def _edge_bias(self, edge_attr: Tensor | None, num_edges: int) -> Tensor | None:
        if self.lin_edge is None:
            if edge_attr is not None:
                raise ValueError(
                    "`edge_attr` was given, but the layer was built without `edge_dim`"
                )
            return None
        if edge_attr is None:
            raise ValueError(f"`edge_attr` is missing, expected shape [E, {self.edge_dim}]")
        check_tensor("edge_attr", edge_attr)
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(-1)
        check_shape("edge_attr", edge_attr, num_edges, self.lin_edge.in_features)
        check_dtype("edge_attr", edge_attr, self.lin_edge.weight.dtype)
        return self.lin_edge(edge_attr)

    def _route(
        self, edge_index: Tensor, neighborhood: CSRNeighborhood, sizes: tuple[int, int]
    ) -> Tensor:
        """The fused route takes a sorted ``EdgeIndex``, the edge-wise one the edges as given."""
        hooks = (
            self._message_forward_pre_hooks,
            self._message_forward_hooks,
            self._aggregate_forward_pre_hooks,
            self._aggregate_forward_hooks,
        )
        if self.explain or not self.fuse or any(hooks):
            return edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
        if isinstance(edge_index, EdgeIndex):
            if edge_index.is_sorted_by_col and edge_index.sparse_size() == sizes:
                return edge_index
            edge_index = edge_index.as_tensor()
        perm = neighborhood.perm
        edge_index = edge_index.contiguous() if perm is None else edge_index[:, perm]
        return EdgeIndex(edge_index, sparse_size=sizes, sort_order="col")

    # Output ##################################################################

    def _finish(
        self,
        rows: Tensor,
        x_dst: Tensor | None,
        residual: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Mixes scaled path rows and adds the self-connection and the caller's residual
        connection.
        """
        if self.lin_root is None:
            return self.mix(rows, residual, scale)
        if x_dst is None:
            raise ValueError("`x` must hold target features (x[1]) with root_weight=True")
        root = with_degrees(self.lin_root(x_dst), self.lmax)
        return self.mix(rows, root if residual is None else root + residual, scale)

    def _spec(self, dtype: torch.dtype, lmax_harmonics: int = 0) -> Spec:
        """The specification of the edge-wise route."""
        return Spec(
            self.coupling,
            self.num_groups,
            self.cutoff,
            self.radial.num_radial - 3,
            max(*self.orders, lmax_harmonics),
            torch.promote_types(dtype, torch.float32),
        )

    def _splines(self, z: PairTensor) -> RadialSplines:
        return self.radial(z[1], z[0])

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.out_channels}, "
            f"lmax={self.lmax}, {self._group_name}={self.num_groups})"
        )
