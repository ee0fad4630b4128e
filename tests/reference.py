"""Naive float64 versions of the operations, from e3nn's and scipy's primitives, edge by edge.

Nothing here comes from the package, save the containers that its operations take and the places
of their output rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from e3nn import o3
from scipy.interpolate import BSpline
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from e2former_pyg.functional import coupling, equivariant_attention, equivariant_convolution
from e2former_pyg.graph import CSRNeighborhood
from e2former_pyg.radial import RadialSplines

TENSORS = ("q", "k", "v", "u", "pos", "sink", "coefficients", "edge_shift", "edge_bias", "strain")


@dataclass(frozen=True)
class Case:
    """The input of one operation. Without ``q`` it is that of a convolution."""

    edge_index: Tensor
    pos: Tensor | tuple[Tensor, Tensor]
    v: Tensor
    coefficients: Tensor
    target_type: Tensor
    source_type: Tensor
    orders: tuple[int, ...]
    groups: int
    lmax: int
    parity: str = "so3"
    cutoff: float = 3.0
    q: Tensor | None = None
    k: Tensor | None = None
    u: Tensor | None = None
    sink: Tensor | None = None
    edge_shift: Tensor | None = None
    edge_bias: Tensor | None = None
    strain: Tensor | None = None
    batch: Tensor | None = None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return (self.pos, self.pos) if isinstance(self.pos, Tensor) else self.pos

    @property
    def size(self) -> tuple[int, int]:
        return self.pair[0].size(0), self.pair[1].size(0)

    @property
    def lmax_in(self) -> int:
        return math.isqrt(self.v.size(1)) - 1

    def replace(self, **changes: object) -> Case:
        return replace(self, **changes)  # type: ignore[arg-type]

    def map(self, function) -> Case:
        """Applies ``function`` to the floating point inputs."""
        changes = {}
        for name in TENSORS:
            value = getattr(self, name)
            if isinstance(value, tuple):
                changes[name] = tuple(function(part) for part in value)
            elif value is not None:
                changes[name] = function(value)
        return replace(self, **changes)

    def leaves(self) -> tuple[Case, dict[str, Tensor]]:
        """A copy whose floating point inputs need gradients, and these inputs by name."""
        case = self.map(lambda tensor: tensor.detach().clone().requires_grad_())
        named: dict[str, Tensor] = {}
        for name in TENSORS:
            value = getattr(case, name)
            if isinstance(value, tuple):
                named |= {f"{name}[{n}]": part for n, part in enumerate(value)}
            elif value is not None:
                named[name] = value
        return case, named

    def rebuild(self, named: dict[str, Tensor]) -> Case:
        """The inverse of :meth:`leaves`: takes the inputs of the given names."""
        changes = {name: tensor for name, tensor in named.items() if "[" not in name}
        if "pos[0]" in named:
            changes["pos"] = (named["pos[0]"], named["pos[1]"])  # type: ignore[assignment]
        return replace(self, **changes)

    def run(self, neighborhood: CSRNeighborhood | None = None, **kwargs) -> Tensor:
        """The operation of the package."""
        neighborhood = neighborhood or CSRNeighborhood.from_edge_index(self.edge_index, self.size)
        radial = RadialSplines(self.coefficients, self.target_type, self.source_type, self.cutoff)
        kwargs |= {
            name: getattr(self, name)
            for name in ("orders", "lmax", "parity", "edge_shift", "edge_bias", "strain", "batch")
        }
        if self.q is None:
            return equivariant_convolution(self.v, self.pos, neighborhood, radial, **kwargs)
        kwargs |= {"sink": self.sink, "u": self.u}
        return equivariant_attention(
            self.q, self.k, self.v, self.pos, neighborhood, radial, **kwargs
        )


def make_case(
    *,
    seed: int = 0,
    nodes: int = 7,
    sources: int | None = None,
    edges: int = 24,
    convolution: bool = False,
    orders: tuple[int, ...] = (0, 1),
    lmax_in: int = 2,
    lmax: int | None = None,
    parity: str = "so3",
    groups: int = 2,
    channels: int = 4,
    types: int = 2,
    num_radial: int = 6,
    directional: int | None = None,
    bias: bool = False,
    shift: bool = False,
    graphs: int = 0,
) -> Case:
    """A random, awkward input: edges in any order, some doubled, some beyond the cutoff, one of
    zero length, one on the y axis, one just inside the cutoff, the last target isolated.

    With ``sources`` the graph is bipartite; with ``graphs`` each graph has a strain.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    source_pos = 1.2 * random(sources or nodes, 3)
    target_pos = source_pos if sources is None else 1.2 * random(nodes, 3)
    anchor = source_pos[0].clone()
    if sources is not None:
        target_pos[0] = anchor
    target_pos[1] = anchor + torch.tensor([0.0, 1.3, 0.0])
    direction = random(3)
    target_pos[2] = anchor + 0.995 * 3.0 * direction / direction.norm()
    target_type, source_type = integers(types, nodes), integers(types, sources or nodes)
    edge_index = torch.stack([integers(sources or nodes, edges), integers(nodes - 1, edges)])
    edge_index[:, :5] = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 2, 2, 2]])
    edge_index = edge_index[:, torch.randperm(edges, generator=generator)]
    functions = groups * (len(orders) + (0 if convolution else 2))
    weights = {}
    if not convolution:
        weights = {
            "q": random(nodes, groups, 3),
            "k": random(sources or nodes, groups, 3),
            "sink": random(groups),
            "u": None if directional is None else random(nodes, (directional + 1) ** 2, groups),
        }
    return Case(
        edge_index,
        source_pos if sources is None else (source_pos, target_pos),
        random(sources or nodes, (lmax_in + 1) ** 2, channels),
        random(types, types, num_radial, functions),
        target_type,
        source_type if sources is not None else target_type,
        orders,
        groups,
        lmax_in if lmax is None else lmax,
        parity,
        edge_bias=random(edges, functions if convolution else groups) if bias else None,
        edge_shift=0.5 * random(edges, 3) if shift else None,
        strain=0.1 * random(graphs, 3, 3) if graphs else None,
        batch=integers(graphs, nodes) if graphs else None,
        **weights,
    )


def edge_vectors(case: Case) -> Tensor:
    source, target = case.edge_index
    vectors = case.pair[1][target] - case.pair[0][source]
    if case.edge_shift is not None:
        vectors = vectors - case.edge_shift
    if case.strain is not None:
        graph = case.batch[target]
        deformation = torch.eye(3, dtype=torch.float64) + case.strain[graph]
        vectors = torch.einsum("ea,eab->eb", vectors, deformation)
    return vectors


def radial_functions(case: Case, length: Tensor) -> Tensor:
    """B-splines with uniform knots, of which the interval [0, cutoff] is the base interval."""
    source, target = case.edge_index
    num = case.coefficients.size(2)
    knots = (torch.arange(num + 4, dtype=torch.float64) - 3) * (case.cutoff / (num - 3))
    pairs = zip(case.target_type[target].tolist(), case.source_type[source].tolist(), strict=True)
    rows = [
        BSpline(knots.numpy(), case.coefficients[i, j].detach().numpy(), 3)(min(r, case.cutoff))
        for (i, j), r in zip(pairs, length.tolist(), strict=True)
    ]
    empty = np.empty((0, case.coefficients.size(3)))
    return torch.from_numpy(np.stack(rows) if rows else empty)


def harmonics(lmax: int, vectors: Tensor) -> Tensor:
    return o3.spherical_harmonics(
        list(range(lmax + 1)), vectors, normalize=True, normalization="component"
    )


def cutoff_function(case: Case, length: Tensor) -> Tensor:
    x = length / case.cutoff
    return torch.where(x < 1, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, 0.0)


@cache
def coefficients_3j(l1: int, l2: int, l3: int) -> Tensor:
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)


def tensor_product(case: Case, weights: Tensor, vectors: Tensor) -> Tensor:
    """Path rows from ``weights [E, orders, G]``, path by path."""
    source, target = case.edge_index
    paths = coupling(case.lmax_in, case.lmax, case.orders, case.parity)
    channels = case.v.size(2)
    y = harmonics(max(case.orders), vectors)
    out = torch.zeros(case.size[1], paths.num_rows, channels, dtype=torch.float64)
    for path in paths.paths:
        l1, order, l3 = path
        weight = weights[:, case.orders.index(order)]
        values = case.v[source][:, l1 * l1 : (l1 + 1) ** 2]
        values = values * weight.repeat_interleave(channels // case.groups, dim=1).unsqueeze(1)
        product = torch.einsum(
            "eac,eb,abk->ekc",
            values,
            y[:, order * order : (order + 1) ** 2],
            coefficients_3j(l1, order, l3),
        )
        rows = torch.zeros(case.size[1], 2 * l3 + 1, channels, dtype=torch.float64)
        out[:, list(paths.row_of(path))] = rows.index_add(0, target, product)
    return out


def attention_weights(case: Case) -> Tensor:
    """Weights of the edges ``[E, H]``, by the definition: no shift, no logarithm."""
    source, target = case.edge_index
    heads = case.groups
    vectors = edge_vectors(case)
    length = vectors.norm(dim=-1)
    functions = radial_functions(case, length)
    logits = (case.q[target] * case.k[source]).sum(-1) / math.sqrt(case.q.size(2))
    if case.u is not None:
        y = harmonics(math.isqrt(case.u.size(1)) - 1, vectors)
        logits = logits + torch.einsum("em,emh->eh", y[:, 1:], case.u[target][:, 1:])
    logits = functions[:, :heads] * logits + functions[:, heads : 2 * heads]
    if case.edge_bias is not None:
        logits = logits + case.edge_bias
    terms = cutoff_function(case, length).unsqueeze(1) * logits.exp()
    total = case.sink.exp().repeat(case.size[1], 1).index_add(0, target, terms)
    return terms / total[target]


def naive(case: Case, mask: Tensor | None = None) -> Tensor:
    """The operation by its definition; ``mask [E, H]`` multiplies attention weights."""
    vectors = edge_vectors(case)
    length = vectors.norm(dim=-1)
    functions = radial_functions(case, length)
    if case.q is None:
        if case.edge_bias is not None:
            functions = functions + case.edge_bias
        weights = functions * cutoff_function(case, length).unsqueeze(1)
        return tensor_product(case, weights.unflatten(1, (-1, case.groups)), vectors)
    alpha = attention_weights(case)
    if mask is not None:
        alpha = alpha * mask
    values = functions[:, 2 * case.groups :].unflatten(1, (-1, case.groups))
    return tensor_product(case, alpha.unsqueeze(1) * values, vectors)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the 2-norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that owns memory."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.elements = max(self.elements, size)
        return out
