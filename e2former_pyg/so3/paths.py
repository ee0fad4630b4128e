"""Coupling paths and the layout of their rows."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from e2former_pyg.so3.harmonics import MAX_DEGREE


class Path(NamedTuple):
    """One coupling ``l1 ⊗ order -> l3``."""

    degree_in: int
    order: int
    degree_out: int


@dataclass(frozen=True)  # equal by value: whoever asks for the same paths shares cached tables
class Paths:
    r"""Paths :math:`(l_1, \ell, l_3)` and where their rows lie.

    Rows are grouped by :math:`l_3`; inside a group the order is ``m3`` first, path last, so that a
    group is the operand ``[N, 2 * l3 + 1, paths * C]`` of one matrix product.
    """

    lmax_in: int
    lmax_out: int
    orders: tuple[int, ...]
    paths: tuple[Path, ...]

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

    def row_of(self, path: Path) -> range:
        """Output rows of ``path``, ``m3`` ascending."""
        counts = self.paths_per_degree
        first = sum((2 * degree + 1) * counts[degree] for degree in range(path.degree_out))
        siblings = [other for other in self.paths if other.degree_out == path.degree_out]
        start = first + siblings.index(path)
        return range(start, start + (2 * path.degree_out + 1) * len(siblings), len(siblings))


def all_paths(
    lmax_in: int, lmax_out: int, orders: tuple[int, ...], parity: str
) -> tuple[Path, ...]:
    r"""All paths with :math:`|l_1-\ell| \le l_3 \le l_1+\ell`; with ``parity="o3"`` those with even
    :math:`l_1+\ell+l_3`.
    """
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
    return paths


def as_orders(order: int | Iterable[int], name: str = "order") -> tuple[int, ...]:
    """Normalises orders (``n`` means ``{n}``) to a sorted tuple; errors call them ``name``."""
    given: tuple[Any, ...] = tuple(order) if isinstance(order, Iterable) else (order,)
    try:
        orders = tuple(operator.index(n) for n in given if not isinstance(n, bool))
    except TypeError:
        orders = ()
    if not orders or len(orders) != len(given):
        raise ValueError(f"`{name}` must be an integer or a non-empty set of integers, got {given}")
    if min(orders) < 0 or max(orders) > MAX_DEGREE or len(set(orders)) != len(orders):
        raise ValueError(f"`{name}` must hold distinct integers in 0..{MAX_DEGREE}, got {orders}")
    return tuple(sorted(orders))
