"""Products of node features with the harmonics of one vector, in four ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from e3nn import o3
from torch import Tensor

from e2former_pyg.functional import Coupling, coupling
from e2former_pyg.so3 import (
    axis_aligned_product,
    default_irreps,
    from_irreps,
    solid_harmonics,
    to_irreps,
)

Product = Callable[[Tensor, Tensor, list[Tensor]], Tensor]


@dataclass(frozen=True)
class NodeCase:
    """One product, whose paths are mixed to as many channels."""

    lmax: int
    orders: tuple[int, ...]
    nodes: int
    channels: int

    reference = "dense"

    @property
    def name(self) -> str:
        orders = "all" if len(self.orders) > 1 else self.orders[0]
        return f"product/lmax={self.lmax}/orders={orders}"

    @property
    def paths(self) -> Coupling:
        return coupling(self.lmax, self.lmax, self.orders)

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, list[Tensor]]:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(device, dtype)
            return values.requires_grad_()

        x = random(self.nodes, (self.lmax + 1) ** 2, self.channels)
        weight = [
            random(count * self.channels, self.channels) for count in self.paths.paths_per_degree
        ]
        return x, random(self.nodes, 3), weight

    def methods(self, device: str) -> dict[str, Product]:
        """Each gives the same result."""
        return {
            "aligned": self._ours("aligned"),
            "dense": self._ours("dense"),
            "full tensor": self._full_tensor(device),
            "e3nn": self._e3nn(device),
        }

    def _ours(self, method: str) -> Product:
        def run(x: Tensor, r: Tensor, weight: list[Tensor]) -> Tensor:
            return axis_aligned_product(x, r, self.orders, weight=weight, method=method)

        return run

    def _full_tensor(self, device: str) -> Product:
        """All coefficients, zeros included, times all products of features and harmonics."""
        table = self.paths.dense().flatten(1)
        rows = torch.tensor(self.paths.harmonic_rows, device=device)
        sizes = [(2 * n + 1) * count for n, count in enumerate(self.paths.paths_per_degree)]
        tables = {dtype: table.to(device, dtype) for dtype in (torch.float32, torch.float64)}

        def run(x: Tensor, r: Tensor, weight: list[Tensor]) -> Tensor:
            y = solid_harmonics(max(self.orders), r).index_select(1, rows)
            outer = (y[:, :, None, None] * x[:, None]).flatten(1, 2)
            product = tables[x.dtype] @ outer
            parts = [
                part.reshape(x.size(0), 2 * degree + 1, -1) @ matrix
                for degree, (part, matrix) in enumerate(
                    zip(product.split(sizes, dim=1), weight, strict=True)
                )
            ]
            return torch.cat(parts, dim=1)

        return run

    def _e3nn(self, device: str) -> Product:
        """e3nn's tensor product with a matrix of weights for each path."""
        irreps = default_irreps(self.channels, self.lmax)
        harmonics = o3.Irreps([(1, (order, 1)) for order in self.orders])
        module = o3.TensorProduct(
            irreps,
            harmonics,
            irreps,
            [
                (l1, self.orders.index(order), l3, "uvw", True, 2.0 * l3 + 1.0)
                for l1, order, l3 in self.paths.paths
            ],
            irrep_normalization="none",
            path_normalization="none",
            internal_weights=False,
            shared_weights=True,
        ).to(device)

        def run(x: Tensor, r: Tensor, weight: list[Tensor]) -> Tensor:
            y = o3.spherical_harmonics(harmonics, r, normalize=False, normalization="component")
            flat = torch.cat([matrix.flatten() for matrix in weight])
            return from_irreps(module(to_irreps(x, irreps), y, flat), irreps)

        return run


def coefficient_counts(case: NodeCase) -> dict[str, int]:
    """Nonzero coefficients in a table of e3nn, and in the aligned frame."""
    full = aligned = 0
    for l1, order, l3 in case.paths.paths:
        table = o3.wigner_3j(l1, order, l3, dtype=torch.float64) * sqrt(2 * l3 + 1)
        full += int((table.abs() > 1e-12).sum())
        aligned += int((table[:, order].abs() > 1e-12).sum())
    return {"nonzero_coefficients": full, "aligned_coefficients": aligned}
