r"""The neighbourhoods of the target nodes in CSR form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric import EdgeIndex

from ..checks import values_known
from .curve import curve_order

INT32_MAX = 2**31 - 1

Size = int | tuple[int | None, int | None] | None


class CSRNeighborhood:
    r"""The neighbourhoods of the target nodes of a graph in compressed (CSR)
    form.

    The sources of target :math:`i` are
    :obj:`col[rowptr[i]:rowptr[i + 1]]`. A position in :obj:`col` is called a
    *slot*; slots of one target keep the order that their edges had in the
    caller's list.

    Args:
        rowptr (torch.Tensor): The first slot of each target, int32.
        col (torch.Tensor): The source node of each slot, int32.
        perm (torch.Tensor, optional): The position of each slot in the
            caller's edge list, int64. :obj:`None` means that the list was
            already sorted by target.
        num_sources (int): The number of source nodes.

    Attributes:
        num_targets (int): The number of target nodes.
        num_sources (int): The number of source nodes.
        num_edges (int): The number of edges.

    Shapes:
        - **rowptr:** :math:`(N_t + 1)`
        - **col:** :math:`(|\mathcal{E}|)`
        - **perm:** :math:`(|\mathcal{E}|)`
    """

    def __init__(
        self,
        rowptr: Tensor,
        col: Tensor,
        perm: Tensor | None,
        num_sources: int,
    ) -> None:
        self.rowptr = rowptr
        self.col = col
        self.perm = perm
        self.num_sources = num_sources
        self.num_targets: int = rowptr.size(0) - 1
        self.num_edges: int = col.size(0)
        self._row: Tensor | None = None
        self._degree: Tensor | None = None
        self._transpose: CSRNeighborhood | None = None
        self._order: Tensor | None = None

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor | EdgeIndex,
        size: Size = None,
    ) -> CSRNeighborhood:
        r"""Builds the neighbourhoods from an edge list.

        The result is cached for as long as an
        :class:`~torch_geometric.EdgeIndex` lives and its content is not
        changed in-place, so that layers that share it share the work as well.

        On the CPU, indices are checked and lists that are already sorted are
        detected. On other devices neither is done, since it would wait for
        the device: lists are sorted, unless they are an
        :class:`~torch_geometric.EdgeIndex` that is sorted by :obj:`"col"`.

        Args:
            edge_index (torch.Tensor or EdgeIndex): The edges, with sources
                :math:`j` in row 0 and targets :math:`i` in row 1, int64 or
                int32.
            size (int or (int, int), optional): The number of source and
                target nodes. If :obj:`None`, it is taken from
                :meth:`EdgeIndex.sparse_size`, or else is one more than the
                largest index. (default: :obj:`None`)

        Raises:
            TypeError: If :obj:`edge_index` does not hold int64 or int32.
            ValueError: If :obj:`edge_index` is not of shape
                :math:`(2, |\mathcal{E}|)`, has :math:`2^{31}` edges or more,
                claims an order that it does not have, or more nodes than
                :obj:`size`.
            IndexError: If an index is negative or beyond :obj:`size`.
        """
        if not isinstance(edge_index, EdgeIndex) or torch.compiler.is_compiling():
            return cls._build(edge_index, size)

        data = edge_index.as_tensor()
        if edge_index.is_inference() or data.is_inference():  # Changes would go unseen.
            return cls._build(edge_index, size)

        key = _cache_key(edge_index, size)
        entry = _CACHE.get(edge_index)
        if entry is None or entry.data is not data or entry.key != key:
            entry = _CacheEntry(data, key, cls._build(edge_index, size))
            _CACHE[edge_index] = entry
        return entry.neighborhood

    @classmethod
    def _build(cls, edge_index: Tensor | EdgeIndex, size: Size) -> CSRNeighborhood:
        indptr: Tensor | None = None
        claims_sorted = False
        sparse_size: tuple[int | None, int | None] = (None, None)
        if isinstance(edge_index, EdgeIndex):
            sparse_size = edge_index.sparse_size()
            claims_sorted = edge_index.is_sorted_by_col
            indptr = edge_index._indptr if claims_sorted else None
            edge_index = edge_index.as_tensor()

        _check_edge_index(edge_index)
        source, target = edge_index[0].contiguous(), edge_index[1].contiguous()
        if size is not None:
            claimed, sparse_size = sparse_size, _check_size(size)
            # Fewer nodes are no contradiction: PyG infers sizes from edges, which isolated nodes
            # at the end do not have.
            if any(
                a is not None and b is not None and a > b
                for a, b in zip(claimed, sparse_size, strict=True)
            ):
                raise ValueError(
                    f"`edge_index` is an EdgeIndex with sparse_size={claimed}, which contradicts "
                    f"the numbers of sources and targets {sparse_size}"
                )
        num_sources, num_targets = _resolve_size(edge_index, sparse_size)

        checked = values_known(edge_index)
        is_sorted = claims_sorted
        if checked and target.size(0) > 0:
            _check_range(source, 0, num_sources)
            _check_range(target, 1, num_targets)
            is_sorted = bool((target[1:] >= target[:-1]).all())
            if claims_sorted and not is_sorted:
                raise ValueError(
                    "`edge_index` is an EdgeIndex with sort_order='col', but its targets "
                    "(row 1) are not sorted"
                )

        perm: Tensor | None = None
        if not is_sorted and target.size(0) > 0:
            target, perm = torch.sort(target, stable=True)
            source = source.index_select(0, perm)
        if indptr is not None and indptr.size(0) == num_targets + 1:
            rowptr = indptr.to(torch.int32)
        else:
            rowptr = _compress(target, num_targets)
        return cls(rowptr, source.to(torch.int32), perm, num_sources)

    @property
    def device(self) -> torch.device:
        r"""The device of the index tensors."""
        return self.col.device

    @property
    def row(self) -> Tensor:
        r"""The target node of each slot, int32."""
        if self._row is None:
            targets = torch.arange(self.num_targets, dtype=torch.int32, device=self.device)
            self._row = targets.repeat_interleave(self.degree, output_size=self.num_edges)
        return self._row

    @property
    def degree(self) -> Tensor:
        r"""The number of edges of each target node, int32."""
        if self._degree is None:
            self._degree = self.rowptr[1:] - self.rowptr[:-1]
        return self._degree

    def transpose(self) -> CSRNeighborhood:
        r"""Returns the neighbourhoods of the source nodes: :obj:`col` of the
        result holds targets, and its :obj:`perm` (never :obj:`None`) the slot
        in this object.
        """
        if self._transpose is None:
            source, perm = torch.sort(self.col, stable=True)
            self._transpose = CSRNeighborhood(
                rowptr=_compress(source, self.num_sources),
                col=self.row.index_select(0, perm),
                perm=perm,
                num_sources=self.num_targets,
            )
        return self._transpose

    def order(self, pos: Tensor) -> Tensor:
        r"""Returns an order of the targets in which those near in space are near one another,
        int32 :math:`(N_t)`.

        It is kept: for the nodes of this graph it stays a good one while they move.

        Args:
            pos (torch.Tensor): Positions of the targets in Å.
        """
        if self._order is None:
            self._order = curve_order(pos)
        return self._order

    def remember(self, edge_index: EdgeIndex) -> None:
        r"""Makes :meth:`from_edge_index` return this object for an
        :class:`~torch_geometric.EdgeIndex` of these nodes, whatever its
        edges.
        """
        size = (self.num_sources, self.num_targets)
        key = _cache_key(edge_index, size)
        _CACHE[edge_index] = _CacheEntry(edge_index.as_tensor(), key, self)

    def to(self, device: torch.device | str) -> CSRNeighborhood:
        r"""Returns the neighbourhoods on another device."""
        if torch.device(device) == self.device:
            return self
        perm = None if self.perm is None else self.perm.to(device)
        return CSRNeighborhood(self.rowptr.to(device), self.col.to(device), perm, self.num_sources)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(num_targets={self.num_targets}, "
            f"num_sources={self.num_sources}, num_edges={self.num_edges}, "
            f"device='{self.device}')"
        )


def _cache_key(edge_index: EdgeIndex, size: Size) -> tuple[object, ...]:
    # PyG's in-place operations raise the version of the wrapper, others that of the data.
    versions = (edge_index._version, edge_index.as_tensor()._version)
    return versions, size, edge_index.sparse_size(), edge_index.sort_order


class _CacheEntry(NamedTuple):
    data: Tensor
    key: tuple[object, ...]
    neighborhood: CSRNeighborhood


# Beside the instances, not on them: an attribute would travel into pickles and
# deep copies, where nothing tells whether it is still valid.
_CACHE: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _compress(index: Tensor, size: int) -> Tensor:
    if torch.compiler.is_compiling():  # the operator below would fix the number of nodes
        rows = torch.arange(size + 1, dtype=index.dtype, device=index.device)
        return torch.searchsorted(index, rows, out_int32=True)
    return torch._convert_indices_from_coo_to_csr(index, size, out_int32=True)


def _check_edge_index(edge_index: Tensor) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"`edge_index` must be a Tensor or an EdgeIndex, found {type(edge_index)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`edge_index` must hold int64 or int32, found {edge_index.dtype}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"`edge_index` must have shape [2, num_edges], found {list(edge_index.shape)}"
        )
    if edge_index.size(1) > INT32_MAX:
        raise ValueError(
            f"`edge_index` must have fewer than 2**31 edges, found {edge_index.size(1)}"
        )


def _check_size(size: Size) -> tuple[int | None, int | None]:
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"`size` must be an int or (num_sources, num_targets), found {size!r}")
    if any(s is not None and not 0 <= s <= INT32_MAX for s in pair):
        raise ValueError(f"`size` must lie in [0, 2**31), found {size!r}")
    return pair[0], pair[1]


def _resolve_size(edge_index: Tensor, size: tuple[int | None, int | None]) -> tuple[int, int]:
    num_sources, num_targets = size
    if num_sources is None and num_targets is None:
        num_sources = num_targets = _max(edge_index) + 1
    if num_sources is None:
        num_sources = _max(edge_index[0]) + 1
    if num_targets is None:
        num_targets = _max(edge_index[1]) + 1
    return num_sources, num_targets


def _max(index: Tensor) -> int:
    return int(index.max()) if index.numel() > 0 else -1


def _check_range(index: Tensor, dim: int, size: int) -> None:
    low, high = (int(value) for value in torch.aminmax(index))
    if low < 0 or high >= size:
        name = ("source", "target")[dim]
        raise IndexError(
            f"`edge_index` holds the {name} index {low if low < 0 else high} in row {dim}, "
            f"expected values in [0, {size})"
        )
