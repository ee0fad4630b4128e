"""Coupling paths, their coefficients, and the layout of the op's output rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..so3 import clebsch_gordan
from ..so3.degrees import build_constant
from ..so3.harmonics import MAX_DEGREE
from ..so3.paths import Path, Paths, all_paths, as_orders
from .row_sums import RowTable, row_sums

__all__ = ["Coupling", "Path", "as_orders", "coupling", "row_tables"]


@dataclass(frozen=True)  # equal by value: copies of a layer share cached tables
class Coupling(Paths):
    r"""The paths :math:`(l_1, \ell, l_3)` of one operation, from moments to output rows."""

    @property
    def num_moments(self) -> int:
        """Rows of the harmonics that the orders use."""
        return sum(2 * order + 1 for order in self.orders)

    @property
    def harmonic_rows(self) -> list[int]:
        """Rows of :math:`Y` (all degrees from 0) that the orders use."""
        return [order * order + m for order in self.orders for m in range(2 * order + 1)]

    @property
    def moment_order(self) -> list[int]:
        """Position in :attr:`orders` to which each moment row belongs."""
        return [n for n, order in enumerate(self.orders) for _ in range(2 * order + 1)]

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

    def tables(self, dtype: torch.dtype, device: torch.device) -> tuple[RowTable, RowTable]:
        """The coefficients as a matrix from moments and inputs to rows, and its transpose."""
        return _tables(self, dtype, device)

    def couple(self, moments: Tensor) -> Tensor:
        """Couples moments ``[G, H, num_moments, T, num_inputs, D]`` of groups of ``T`` nodes to
        path rows ``[G * T, num_rows, H * D]``.

        Rows come first in memory.
        """
        groups, heads, _, group_size, _, size = moments.shape
        num_nodes = groups * group_size
        flat = moments.permute(2, 4, 0, 3, 1, 5).reshape(-1, num_nodes * heads * size)
        rows = row_sums(flat, *self.tables(moments.dtype, moments.device))
        return rows.view(self.num_rows, num_nodes, heads * size).transpose(0, 1)


@torch.compiler.assume_constant_result
@cache
def _tables(
    coupling: Coupling, dtype: torch.dtype, device: torch.device
) -> tuple[RowTable, RowTable]:
    def build() -> tuple[RowTable, RowTable]:
        matrix = coupling.dense().flatten(1)
        return (
            RowTable.from_dense(matrix, dtype, device),
            RowTable.from_dense(matrix.t(), dtype, device),
        )

    return build_constant(build)


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

    Raises:
        ValueError: If a degree is not in 0 to 8, or there is no path.
    """
    for name, degree in (("lmax_in", lmax_in), ("lmax", lmax_out)):
        if not 0 <= degree <= MAX_DEGREE:
            raise ValueError(f"`{name}` must be in 0..{MAX_DEGREE}, got {degree}")
    return Coupling(lmax_in, lmax_out, orders, all_paths(lmax_in, lmax_out, orders, parity))
