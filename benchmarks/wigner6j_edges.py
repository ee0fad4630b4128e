"""The convolution by three routes: direct, factorized, and edge by edge with e3nn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from attention_systems import NUM_RADIAL, Graph, make_atoms
from e3nn import o3
from torch import Tensor

from e2former_pyg.functional import Coupling, coupling, equivariant_convolution
from e2former_pyg.radial import RadialSplines, envelope, evaluate_splines, spline_cells
from e2former_pyg.so3 import default_irreps, to_irreps

# Takes values, positions and spline coefficients, returns path rows.
Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EdgeCase:
    """A convolution on atoms in a periodic cube."""

    lmax: int
    orders: tuple[int, ...]
    atoms: int
    channels: int
    groups: int = 8
    cutoff: float = 4.924

    reference = "direct"

    @property
    def name(self) -> str:
        orders = ",".join(map(str, self.orders))
        return f"convolution/lmax={self.lmax}/orders={orders}"

    @property
    def paths(self) -> Coupling:
        return coupling(self.lmax, self.lmax, self.orders)

    def system(self, device: str) -> tuple[Tensor, Graph]:
        return make_atoms(self.atoms, self.cutoff, device)

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        pos, graph = self.system(device)
        types = int(graph.source_type.max()) + 1
        shapes = (
            (self.atoms, (self.lmax + 1) ** 2, self.channels),
            (types, types, NUM_RADIAL, len(self.orders) * self.groups),
        )
        v, coefficients = (torch.randn(*s, generator=generator).to(device, dtype) for s in shapes)
        return tuple(
            tensor.detach().clone().requires_grad_() for tensor in (v, pos.to(dtype), coefficients)
        )

    def methods(self, device: str) -> dict[str, Convolution]:
        """Each gives the same path rows."""
        return {
            "direct": self._ours("direct", device),
            "factorized": self._ours("factorized", device),
            "e3nn on edges": self._e3nn(device),
        }

    def _ours(self, algorithm: str, device: str) -> Convolution:
        _, graph = self.system(device)

        def run(v: Tensor, pos: Tensor, coefficients: Tensor) -> Tensor:
            types = graph.target_type, graph.source_type
            return equivariant_convolution(
                v,
                pos,
                graph.neighborhood,
                RadialSplines(coefficients, *types, self.cutoff),
                orders=self.orders,
                edge_shift=graph.edge_shift.to(pos.dtype),
                algorithm=algorithm,
            )

        return run

    def _e3nn(self, device: str) -> Convolution:
        """Messages of all edges, ``x_j ⊗ Y(r_ij)`` path by path, and their sums."""
        _, graph = self.system(device)
        source, target = graph.edge_index.as_tensor()
        irreps = default_irreps(self.channels, self.lmax)
        harmonics = o3.Irreps([(1, (order, 1)) for order in self.orders])
        # Outputs in the order of the path rows: by degree, then path.
        module = o3.TensorProduct(
            irreps,
            harmonics,
            o3.Irreps([(self.channels, (path.degree_out, 1)) for path in self.paths.paths]),
            [
                (path.degree_in, self.orders.index(path.order), n, "uvu", True, 2.0 * path[2] + 1)
                for n, path in enumerate(self.paths.paths)
            ],
            irrep_normalization="none",
            path_normalization="none",
            internal_weights=False,
            shared_weights=False,
        ).to(device)
        order_of_path = torch.tensor(
            [self.orders.index(path.order) for path in self.paths.paths], device=device
        )
        sizes = [self.channels * (2 * path.degree_out + 1) for path in self.paths.paths]
        place = torch.tensor(
            [row for path in self.paths.paths for row in self.paths.row_of(path)]
        ).argsort()

        def run(v: Tensor, pos: Tensor, coefficients: Tensor) -> Tensor:
            vectors = pos[target] - pos[source] - graph.edge_shift.to(pos.dtype)
            length = vectors.norm(dim=-1)
            types = graph.target_type, graph.source_type
            radial = RadialSplines(coefficients, *types, self.cutoff)
            functions = evaluate_splines(
                radial.cell_polynomials(),
                *spline_cells(length, radial.num_cells, self.cutoff),
                types[0][target],
                types[1][source],
            )
            weights = functions * envelope(length, self.cutoff).unsqueeze(-1)
            weights = weights.unflatten(1, (len(self.orders), self.groups))[:, order_of_path]
            weights = weights.repeat_interleave(self.channels // self.groups, dim=-1).flatten(1)
            y = o3.spherical_harmonics(harmonics, vectors, True, normalization="component")
            messages = module(to_irreps(v, irreps)[source], y, weights)
            sums = messages.new_zeros(self.atoms, messages.size(1)).index_add(0, target, messages)
            parts = [
                part.unflatten(1, (self.channels, -1)).transpose(1, 2)
                for part in sums.split(sizes, dim=1)
            ]
            return torch.cat(parts, dim=1)[:, place.to(v.device)]

        return run
