"""How programs that collect radial gradients share the rows and the memory for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .operands import Graph


class Spans(NamedTuple):
    """Rows of each program, and where its radial gradients go."""

    programs: int
    rows: int  # of a program, at most
    bounds: Tensor | None  # [programs, 2], rows of each program; None: `rows` each, in order
    graph: Graph
    slabs: Tensor  # a sum for each program
    types: Tensor | None  # the target type of each slab; None: a slab holds all

    def total(self, like: Tensor) -> Tensor:
        """The sum of all slabs; in a fixed order."""
        if self.types is None:
            return self.slabs.sum(0)
        member = torch.arange(like.size(0), device=like.device).unsqueeze(1) == self.types
        total = member.to(like.dtype) @ self.slabs.flatten(1)
        return total.view(like.shape)


def spans(graph: Graph, polynomials: Tensor, rows: int, programs: int, budget: int) -> Spans:
    """Splits ``rows`` between about ``programs`` programs.

    Each has a slab of its own. For few elements that holds all pairs; for many, rows are sorted by
    type and a slab holds the pairs of one target type.
    """
    all_pairs = polynomials.numel() * polynomials.element_size()
    num_types = polynomials.size(0)
    fitting = budget // max(all_pairs, 1)
    programs = min(programs, rows)
    if fitting >= programs or num_types == 1:
        span = -(-rows // max(1, min(programs, fitting)))
        count = -(-rows // span)
        slabs = polynomials.new_zeros(count, *polynomials.shape)
        return Spans(count, span, None, graph, slabs, None)

    span = -(-rows // max(1, min(programs, budget * num_types // all_pairs)))
    order, bounds, kind = _by_type(graph.type_i, graph.order, num_types, span)
    slabs = polynomials.new_zeros(kind.size(0), *polynomials.shape[1:])
    return Spans(kind.size(0), span, bounds, graph._replace(order=order), slabs, kind)


def _by_type(
    types: Tensor, order: Tensor | None, num_types: int, span: int
) -> tuple[Tensor, Tensor, Tensor]:
    """An order of the rows by type, and the rows of each program in it and their type."""
    rows, device = types.size(0), types.device
    in_order = types if order is None else types[order]
    # A radix sort takes a pass for each byte.
    keys = in_order.to(torch.uint8) if num_types <= 256 else in_order
    _, by_type = keys.sort(stable=True)
    counts = (types.unsqueeze(1) == torch.arange(num_types, device=device)).sum(0)
    blocks = (counts + span - 1).div(span, rounding_mode="floor")
    last_block = blocks.cumsum(0)
    # One more for each type than rows alone need; those left over have no rows.
    program = torch.arange(-(-rows // span) + num_types, device=device)
    kind = torch.searchsorted(last_block, program, right=True).clamp(max=num_types - 1)
    stop = counts.cumsum(0)[kind]
    start = (stop - counts[kind]) + (program - last_block[kind] + blocks[kind]) * span
    bounds = torch.stack([start.minimum(stop), (start + span).minimum(stop)], dim=1)
    order = (by_type if order is None else order[by_type]).to(torch.int32)
    return order, bounds.contiguous(), kind
