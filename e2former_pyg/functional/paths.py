"""Coupling paths, their coefficients, and the layout of the op's output rows."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..so3 import clebsch_gordan
from ..so3.degrees import build_constant
from ..so3.harmonics import MAX_DEGREE

# Up to this many coefficients one dense matrix over all orders is cheaper than a matrix per order:
# a handful of wasted multiplications costs less than the extra calls.
_DENSE_LIMIT = 2**14


class Path(NamedTuple):
    """One coupling ``l1 ⊗ order -> l3``."""

    degree_in: int
    order: int
    degree_out: int


class _Block(NamedTuple):
    """Coefficients of a contiguous range of moments, ``[rows, moments * inputs]``."""

    start: int
    stop: int
    table: Tensor


@dataclass(frozen=True)  # equal by value: copies of a layer share cached tables
class Coupling:
    r"""The paths :math:`(l_1, \ell, l_3)` of one operation and where their rows lie.

    Output rows are grouped by :math:`l_3`; inside a group the order is ``m3`` first, path last, so
    that a group is the operand ``[N, 2 * l3 + 1, paths * C]`` of one matrix product.
    """

    lmax_in: int
    lmax_out: int
    orders: tuple[int, ...]
    paths: tuple[Path, ...]

    @property
    def num_moments(self) -> int:
        """Rows of the harmonics that the orders use."""
        return sum(2 * order + 1 for order in self.orders)

    @property
    def num_inputs(self) -> int:
        return (self.lmax_in + 1) ** 2

    @property
    def num_rows(self) -> int:
        return sum(2 * path.degree_out + 1 for path in self.paths)

    @property
    def paths_per_degree(self) -> tuple[int, ...]:
        """Number of paths into each output degree."""
        degrees = [path.degree_out for path in self.paths]
        return tuple(degrees.count(degree) for degree in range(self.lmax_out + 1))

    @property
    def harmonic_rows(self) -> list[int]:
        """Rows of :math:`Y` (all degrees from 0) that the orders use."""
        return [order * order + m for order in self.orders for m in range(2 * order + 1)]

    @property
    def moment_order(self) -> list[int]:
        """Position in :attr:`orders` to which each moment row belongs."""
        return [n for n, order in enumerate(self.orders) for _ in range(2 * order + 1)]

    def row_of(self, path: Path) -> range:
        """Output rows of ``path``, ``m3`` ascending."""
        counts = self.paths_per_degree
        first = sum((2 * degree + 1) * counts[degree] for degree in range(path.degree_out))
        siblings = [other for other in self.paths if other.degree_out == path.degree_out]
        start = first + siblings.index(path)
        return range(start, start + (2 * path.degree_out + 1) * len(siblings), len(siblings))

    def dense(self) -> Tensor:
        """All coefficients, float64 ``[num_rows, num_moments, num_inputs]``."""
        table = torch.zeros(
            self.num_rows, self.num_moments, self.num_inputs, dtype=torch.float64, device="cpu"
        )
        for path in self.paths:
            l1, order, l3 = path
            start = sum(2 * other + 1 for other in self.orders if other < order)
            rows = self.row_of(path)
            table[
                rows.start : rows.stop : rows.step,
                start : start + 2 * order + 1,
                l1 * l1 : (l1 + 1) ** 2,
            ] = clebsch_gordan(l1, order, l3, device="cpu").permute(2, 1, 0)
        return table

    def couple(self, moments: Tensor) -> Tensor:
        """Couples moments ``[N, H, num_moments, num_inputs, D]`` to path rows
        ``[N, num_rows, H * D]``.

        Rows come first in memory, which is how the mixing of paths reads them.
        """
        num_nodes, heads, _, num_inputs, size = moments.shape
        flat = moments.permute(2, 3, 0, 1, 4).reshape(-1, num_nodes * heads * size)
        blocks, permutation = _blocks(self, moments.dtype, moments.device)
        # Splitting one block off would cost a copy in the backward pass.
        sizes = [(block.stop - block.start) * num_inputs for block in blocks]
        columns = [flat] if len(blocks) == 1 else flat.split(sizes)
        parts = [block.table @ part for block, part in zip(blocks, columns, strict=True)]
        rows = parts[0] if permutation is None else torch.cat(parts)[permutation]
        return rows.view(self.num_rows, num_nodes, heads * size).transpose(0, 1)


@torch.compiler.assume_constant_result
@cache
def _blocks(
    coupling: Coupling, dtype: torch.dtype, device: torch.device
) -> tuple[list[_Block], Tensor | None]:
    return build_constant(lambda: _build_blocks(coupling, dtype, device))


def _build_blocks(
    coupling: Coupling, dtype: torch.dtype, device: torch.device
) -> tuple[list[_Block], Tensor | None]:
    dense = coupling.dense()
    if dense.numel() <= _DENSE_LIMIT or len(coupling.orders) == 1:
        table = dense.flatten(1).to(device, dtype)
        return [_Block(0, coupling.num_moments, table)], None
    blocks, rows, start = [], [], 0
    for order in coupling.orders:
        stop = start + 2 * order + 1
        part = dense[:, start:stop].flatten(1)
        used = part.abs().amax(dim=1).nonzero().squeeze(1)
        rows.append(used)
        blocks.append(_Block(start, stop, part[used].to(device, dtype)))
        start = stop
    return blocks, torch.cat(rows).argsort().to(device)


@torch.compiler.assume_constant_result
@cache
def row_tables(coupling: Coupling, device: torch.device) -> tuple[Tensor, Tensor]:
    """:attr:`Coupling.harmonic_rows` and :attr:`Coupling.moment_order` as tensors."""
    return build_constant(
        lambda: (
            torch.tensor(coupling.harmonic_rows, device=device),
            torch.tensor(coupling.moment_order, device=device),
        )
    )


def as_orders(order: int | Iterable[int]) -> tuple[int, ...]:
    """Normalises ``order`` (``n`` means ``{n}``) to a sorted tuple."""
    given: tuple[Any, ...] = tuple(order) if isinstance(order, Iterable) else (order,)
    try:
        orders = tuple(operator.index(n) for n in given if not isinstance(n, bool))
    except TypeError:
        orders = ()
    if not orders or len(orders) != len(given):
        raise ValueError(f"`order` must be an integer or a non-empty set of integers, got {given}")
    if min(orders) < 0 or max(orders) > MAX_DEGREE or len(set(orders)) != len(orders):
        raise ValueError(f"`order` must hold distinct integers in 0..{MAX_DEGREE}, got {orders}")
    return tuple(sorted(orders))


@cache
def coupling(lmax_in: int, lmax_out: int, orders: tuple[int, ...], parity: str = "so3") -> Coupling:
    r"""All paths with :math:`|l_1-\ell| \le l_3 \le l_1+\ell`.

    Args:
        lmax_in (int): Highest degree of the features.
        lmax_out (int): Highest degree of the output.
        orders (tuple): Degrees :math:`\ell` of the harmonics, ascending.
        parity (str): ``"so3"`` keeps every path, ``"o3"`` those with even
            :math:`l_1+\ell+l_3`, so that a mirrored input gives the mirrored output.
            (default: ``"so3"``)
    """
    for name, degree in (("lmax_in", lmax_in), ("lmax", lmax_out)):
        if not 0 <= degree <= MAX_DEGREE:
            raise ValueError(f"`{name}` must be in 0..{MAX_DEGREE}, got {degree}")
    if parity not in ("so3", "o3"):
        raise ValueError(f"`parity` must be 'so3' or 'o3', got {parity!r}")
    paths = tuple(
        Path(l1, order, l3)
        for l3 in range(lmax_out + 1)
        for order in orders
        for l1 in range(lmax_in + 1)
        if abs(l1 - order) <= l3 <= l1 + order and (parity == "so3" or (l1 + order + l3) % 2 == 0)
    )
    if not paths:
        raise ValueError(
            f"`order` = {orders} gives no coupling path for lmax_in={lmax_in}, lmax={lmax_out}, "
            f"parity={parity!r}"
        )
    return Coupling(lmax_in, lmax_out, orders, paths)
