r"""The factorized algorithm: harmonics of edges as products of harmonics of nodes.

By the addition theorem and Wigner 6j recoupling (:mod:`e2former_pyg.so3.addition`)

.. math::
    \sum_j w_{ij} \left[ v_j^{(l_1)} \otimes Y^{\ell}(\hat r_{ij}) \right]^{(l_3)}
    &= \sum_{k, L} (-1)^k c_{\ell k}\, \gamma_{l_1 k L \ell l_3}
    \left[ S_i^{(k, L)} \otimes R^{\ell-k}(r_i) \right]^{(l_3)}

    S_i^{(k, L)} &= \sum_j \frac{w_{ij}}{{|r_{ij}|}^{\ell}}
    \left[ v_j^{(l_1)} \otimes R^k(r_j) \right]^{(L)}

so that edges carry one weight for each order and head, and the rest belongs to nodes: a product at
each source, weighted sums of its rows, a product at each target.

Terms grow with the distance :math:`D` from the origin like :math:`(D/r)^{\ell}` and cancel for
any weights. Hence everything behind the weights is in float64, and origins lie amid the targets
(:obj:`e2former_pyg.functional.origins`): one for all, unless the order is high and the system
large. Precision still fades as edges become short, like :math:`r^{-\ell}`; at zero length, where
an edge has no direction, only order 0 is left, as in the direct algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from ..so3 import addition_coefficient, recoupling_coefficient, solid_harmonics
from ..so3.coupling import coupling_table
from ..so3.degrees import build_constant
from ..so3.paths import Path, Paths
from ..so3.product import path_rows
from .chunks import Chunk, Sizes
from .image_rows import image_rows
from .inputs import PairTensor
from .neighbor_sums import neighbor_sum
from .origins import origins, reach
from .paths import Coupling
from .recompute import Axis
from .sharing import shared
from .torch_backend import Edges, Spec, Sums, by_head

# Of all that follows on the weights.
_DTYPE = torch.float64


class _Term(NamedTuple):
    """What takes the sums of degree ``k`` with input degree ``l1`` to path rows of one order."""

    order: int
    k: int
    first: int
    """The first row of ``l1`` among those of degree ``k``."""
    num_inputs: int
    num_rows: int
    table: Tensor
    """``[harmonics of degree order - k, num_rows * num_inputs]``"""

    def couple(self, harmonics: Tensor, sums: Tensor) -> Tensor:
        """Path rows ``[n, num_rows, C]`` of harmonics of all degrees, and sums of degree ``k``."""
        rest = self.order - self.k
        matrix = harmonics[:, rest**2 : (rest + 1) ** 2] @ self.table
        matrix = matrix.unflatten(1, (self.num_rows, self.num_inputs))
        return torch.bmm(matrix, sums[:, self.first : self.first + self.num_inputs])


@dataclass(frozen=True, eq=False)
class _Plan:
    """The algebra of one set of paths."""

    sources: tuple[Paths, ...]
    """For each ``k`` the products at the source that some path needs."""
    terms: tuple[tuple[_Term, ...], ...]
    """For each order and input degree that has paths, its terms over ``k``."""
    place: Tensor
    """Where each path row lies among the rows of all terms."""

    @property
    def num_sums(self) -> int:
        """Rows of all sums together."""
        return sum(term.num_inputs for terms in self.terms for term in terms)


def _inner_degrees(path: Path, k: int) -> list[int]:
    """The degrees of ``[v ⊗ R^k]`` that ``path`` needs."""
    rest = path.order - k
    low = max(abs(path.degree_in - k), abs(path.degree_out - rest))
    return list(range(low, min(path.degree_in + k, path.degree_out + rest) + 1))


def _source_paths(paths: Coupling, k: int) -> Paths:
    inner = {
        Path(path.degree_in, k, degree)
        for path in paths.paths
        if path.order >= k
        for degree in _inner_degrees(path, k)
    }
    if k == 0:  # the values as they are
        inner = {Path(degree, 0, degree) for degree in range(paths.lmax_in + 1)}
    found = tuple(sorted(inner, key=lambda path: (path.degree_out, path.degree_in)))
    return Paths(paths.lmax_in, max(path.degree_out for path in found), (k,), found)


@torch.compiler.assume_constant_result
@cache
def _plan(paths: Coupling, device: torch.device) -> _Plan:
    return build_constant(lambda: _build_plan(paths, device))


def _build_plan(paths: Coupling, device: torch.device) -> _Plan:
    highest = max(path.order for path in paths.paths)
    sources = tuple(_source_paths(paths, k) for k in range(highest + 1))
    terms: list[tuple[_Term, ...]] = []
    rows: list[int] = []
    for order in paths.orders:
        for degree in range(paths.lmax_in + 1):
            mine = [path for path in paths.paths if path[:2] == (degree, order)]
            if not mine:
                continue
            terms.append(tuple(_build_term(sources[k], mine, k, device) for k in range(order + 1)))
            rows += [row for path in mine for row in paths.row_of(path)]
    place = torch.tensor(rows, device="cpu").argsort().to(device)
    return _Plan(sources, tuple(terms), place)


def _build_term(sources: Paths, paths: Sequence[Path], k: int, device: torch.device) -> _Term:
    """The coefficients of ``paths``, which have one input degree and one order."""
    degree, order = paths[0].degree_in, paths[0].order
    inner = [path.degree_out for path in sources.paths if path.degree_in == degree]
    before = [path.degree_out for path in sources.paths if path.degree_in < degree]
    num_rows = sum(2 * path.degree_out + 1 for path in paths)
    num_inputs = sum(2 * n + 1 for n in inner)
    table = torch.zeros(2 * (order - k) + 1, num_rows, num_inputs, dtype=_DTYPE, device="cpu")
    row = 0
    for path in paths:
        needed, column = _inner_degrees(path, k), 0
        for n in inner:
            if n in needed:
                factor = addition_coefficient(order, k)
                factor *= recoupling_coefficient(degree, k, n, order, path.degree_out)
                part = torch.tensor(coupling_table(n, order - k, path.degree_out), device="cpu")
                stop = row + part.size(2), column + part.size(0)
                table[:, row : stop[0], column : stop[1]] = factor * part.permute(1, 2, 0)
            column += 2 * n + 1
        row += 2 * path.degree_out + 1
    first = sum(2 * n + 1 for n in before)
    return _Term(order, k, first, num_inputs, num_rows, table.flatten(1).to(device))


def factorized_sums(
    spec: Spec,
    neighborhood: CSRNeighborhood,
    v: Tensor,
    pos: PairTensor,
    edge_shift: Tensor | None,
    strain: Tensor | None,
    batch: Tensor | None,
) -> Sums:
    """The algorithm's part of an operation: rows of the sources, and what sums and couples them.

    Args:
        spec (Spec): The specification.
        neighborhood (CSRNeighborhood): The sources of each target.
        v (torch.Tensor): Values of the sources, ``[N_s, inputs, C]``.
        pos ((torch.Tensor, torch.Tensor)): Positions of sources and targets.
        edge_shift (torch.Tensor, optional): Image offset of each edge.
        strain (torch.Tensor, optional): Strain of each graph, ``[B, 3, 3]`` or ``[3, 3]``.
        batch (torch.Tensor, optional): The graph of each target.
    """
    plan = _plan(spec.coupling, v.device)
    several = strain is not None and strain.dim() == 3 and strain.size(0) > 1
    source_pos, target_pos = (p.to(_DTYPE) for p in pos)
    distance = reach(max(spec.coupling.orders), spec.cutoff, v.dtype)
    points, cube = shared(("origins", distance), (pos[1],), lambda: origins(target_pos, distance))
    rows = image_rows(neighborhood, edge_shift, batch if several else None, cube)
    graph, row_cube = rows.labels
    r_i = target_pos - (points if cube is None else points[cube])
    r_j = source_pos if rows.source is None else source_pos[rows.source]
    r_j = r_j - (points if row_cube is None else points[row_cube])
    if rows.shift is not None:
        r_j = r_j + rows.shift
    if strain is not None:
        strain = strain.to(_DTYPE).view(-1, 3, 3)
        r_i = _deform(r_i, strain, batch if several else None)
        r_j = _deform(r_j, strain, graph)
    values = v.to(_DTYPE)
    values = values if rows.source is None else values[rows.source]
    carried = {"r_i": (Axis.TARGET, r_i)}
    for k, paths in enumerate(plan.sources):
        products = values if k == 0 else path_rows(paths, values, r_j, by_input=True)
        carried[f"products_{k}"] = (Axis.SOURCE, by_head(products, spec.heads))
    channels = 2 * v.size(-1)  # float64
    return Sums(
        rows.neighborhood,
        rows.source,
        partial(_factorized_rows, plan),
        carried,
        Sizes(
            2 * spec.heads * len(spec.coupling.orders),
            channels * max(paths.num_rows for paths in plan.sources),
            channels * max(plan.num_sums, spec.coupling.num_rows),
        ),
    )


def _deform(r: Tensor, strain: Tensor, graph: Tensor | None) -> Tensor:
    if graph is None:
        return r + r @ strain[0]
    return r + (r.unsqueeze(1) @ strain[graph]).squeeze(1)


def _factorized_rows(
    plan: _Plan, spec: Spec, chunk: Chunk, edges: Edges, weights: Tensor, *carried: Tensor
) -> Tensor:
    """Path rows ``[G * T, P, C]`` from weights ``[G, orders, H, T, K]``."""
    r_i, *products = carried
    orders = spec.coupling.orders
    index = chunk.head_index(spec.heads)
    length = edges.length.to(_DTYPE)
    nonzero = length > 0
    # An edge of zero length has no direction: only order 0 sees it.
    inverse = torch.where(nonzero, torch.where(nonzero, length, 1.0).reciprocal(), 0.0)
    weights = weights.to(_DTYPE)
    scaled = {
        order: weights[:, n] * (inverse**order).unsqueeze(1) if order > 0 else weights[:, n]
        for n, order in enumerate(orders)
    }
    sums: dict[tuple[int, int], Tensor] = {}
    for k, rows in enumerate(products):
        users = [order for order in orders if order >= k]
        stacked = torch.stack([scaled[order] for order in users], dim=2)
        total = neighbor_sum(stacked.flatten(2, 3), rows.flatten(2), index)
        # [G, H, users * T, rows * D] to [G * T, rows, H * D] for each user.
        total = total.unflatten(-1, rows.shape[2:]).unflatten(2, stacked.shape[2:4])
        total = total.permute(2, 0, 3, 4, 1, 5).flatten(4).flatten(1, 2)
        sums |= {(order, k): part for order, part in zip(users, total.unbind(0), strict=True)}
    harmonics = solid_harmonics(max(orders), r_i)
    parts = []
    for terms in plan.terms:
        part = terms[0].couple(harmonics, sums[terms[0].order, 0])
        for term in terms[1:]:
            part = part + term.couple(harmonics, sums[term.order, term.k])
        parts.append(part)
    return torch.cat(parts, dim=1).index_select(1, plan.place).to(spec.dtype)
