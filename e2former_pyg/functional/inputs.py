"""Validation and normalisation of what the operations share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from ..checks import check_floating, check_range, check_shape
from ..graph import CSRNeighborhood
from ..radial import RadialSplines
from .sharing import shared

PairTensor = tuple[Tensor, Tensor]

OptTensor = TypeVar("OptTensor", Tensor, Tensor | None)


def as_pair(
    value: Tensor | tuple[Tensor, OptTensor], name: str = "pos"
) -> tuple[Tensor, OptTensor]:
    """Splits ``value`` into that of the sources and that of the targets."""
    if isinstance(value, Tensor):
        return value, value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"`{name}` must be a Tensor or a (source, target) pair, got {type(value).__name__}"
        )
    return value[0], value[1]


def degree_of(name: str, rows: int) -> int:
    """The ``lmax`` of ``(lmax + 1)**2`` rows."""
    lmax = round(rows**0.5) - 1
    if rows < 1 or (lmax + 1) ** 2 != rows:
        raise ValueError(f"`{name}` must have (lmax + 1)**2 rows in dimension 1, got {rows}")
    return lmax


def check_edges(
    v: Tensor,
    pos: PairTensor,
    neighborhood: CSRNeighborhood,
    radial: RadialSplines,
    edge_shift: Tensor | None,
    edge_bias: Tensor | None,
    bias_size: int,
) -> None:
    """Checks what both operations read of nodes and edges."""
    num_sources, num_targets = neighborhood.num_sources, neighborhood.num_targets
    check_shape("v", v, num_sources, "(lmax + 1)**2", "C")
    check_floating("v", v)
    for tensor, size, side in zip(
        pos, (num_sources, num_targets), ("source", "target"), strict=True
    ):
        check_shape(f"pos ({side}s)" if pos[0] is not pos[1] else "pos", tensor, size, 3)
        check_floating("pos", tensor)
    check_shape("radial.source_type", radial.source_type, num_sources)
    check_shape("radial.target_type", radial.target_type, num_targets)
    if edge_shift is not None:
        check_shape("edge_shift", edge_shift, neighborhood.num_edges, 3)
    if edge_bias is not None:
        check_shape("edge_bias", edge_bias, neighborhood.num_edges, bias_size)
    check_floating("edge_shift", edge_shift)
    check_floating("edge_bias", edge_bias)


def node_strain(
    strain: Tensor | None, batch: Tensor | None, num_targets: int, dtype: torch.dtype
) -> Tensor | None:
    """The strain of each target's graph, ``[N_t, 3, 3]``."""
    if strain is None:
        return None
    if strain.dim() == 2:
        strain = strain.unsqueeze(0)
    check_shape("strain", strain, "B", 3, 3)
    check_floating("strain", strain)
    strain = strain.to(dtype)
    if batch is None:
        if strain.size(0) != 1:
            raise ValueError(
                f"`batch` must be given with the `strain` of several graphs, got {strain.size(0)}"
            )
        return strain.expand(num_targets, 3, 3)
    check_shape("batch", batch, num_targets)
    check_range("batch", batch, 0, strain.size(0) - 1)
    return shared("strain", (strain, batch), lambda: strain.index_select(0, batch))


def check_backend_name(backend: str) -> None:
    """Raises unless ``backend`` is the name of one."""
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"`backend` must be 'auto', 'torch' or 'triton', got {backend!r}")


def check_algorithm(algorithm: str, backend: str) -> None:
    """Raises unless ``algorithm`` exists and ``backend`` may serve it."""
    check_backend_name(backend)
    if algorithm not in ("direct", "factorized"):
        raise ValueError(f"`algorithm` must be 'direct' or 'factorized', got {algorithm!r}")
    if algorithm == "factorized" and backend == "triton":
        raise RuntimeError(
            "backend='triton' is not available: algorithm='factorized' has no kernel; use "
            "backend='auto' or 'torch'"
        )
