"""How programs that collect radial gradients share the rows and the memory for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operands import Graph, ceil_div


@triton.jit
def rows_of(program, firsts, num_types, span):
    """The rows of a program, ``first`` and ``last + 1``. The programs of one type after the other
    share its rows, which begin at ``firsts``; those left over have none.
    """
    start = program * 0
    stop = program * 0
    before = program * 0
    for kind in range(num_types):
        low = tl.load(firsts + kind).to(tl.int64)
        high = tl.load(firsts + kind + 1).to(tl.int64)
        count = (high - low + span - 1) // span
        first = low + (program - before) * span
        inside = (program >= before) & (program < before + count)
        start = tl.where(inside, first, start)
        stop = tl.where(inside, tl.minimum(first + span, high), stop)
        before += count
    return start, stop


@triton.jit(do_not_specialize=["size", "span"])
def total_kernel(slabs, firsts, out, size, span, BLOCK: tl.constexpr):
    """Sums the slabs of each type, in a fixed order."""
    SLABS: tl.constexpr = 8
    kind = tl.program_id(1)
    first_slab = kind.to(tl.int64) * 0
    for before in range(kind):
        rows = tl.load(firsts + before + 1).to(tl.int64) - tl.load(firsts + before)
        first_slab += (rows + span - 1) // span
    rows = tl.load(firsts + kind + 1).to(tl.int64) - tl.load(firsts + kind)
    last_slab = first_slab + (rows + span - 1) // span
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([SLABS, BLOCK], out.dtype.element_ty)
    for slab in range(first_slab, last_slab, SLABS):
        where = slab + tl.arange(0, SLABS)[:, None]
        mask = (where < last_slab) & (place < size)
        total += tl.load(slabs + where * size + place, mask=mask, other=0.0)
    value = tl.sum(total, axis=0, keep_dims=True)
    tl.store(out + kind * size + place, value, mask=place < size)


class Spans(NamedTuple):
    """Rows of each program, and where its radial gradients go."""

    programs: int
    rows: int  # of a program, at most
    firsts: Tensor | None  # [types + 1], the first row of each target type; None: in order
    graph: Graph
    slabs: Tensor  # a sum for each program; of its target type, if rows are sorted by type

    def total(self, like: Tensor) -> Tensor:
        """The sum of all slabs."""
        if self.firsts is None:
            return self.slabs.sum(0)
        out = torch.empty_like(like)
        size = self.slabs[0].numel()
        grid = ceil_div(size, 256), like.size(0)
        total_kernel[grid](self.slabs, self.firsts, out, size, self.rows, 256)
        return out


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
        span = ceil_div(rows, max(1, min(programs, fitting)))
        count = ceil_div(rows, span)
        slabs = polynomials.new_zeros(count, *polynomials.shape)
        return Spans(count, span, None, graph, slabs)

    span = ceil_div(rows, max(1, min(programs, budget * num_types // all_pairs)))
    order, firsts = by_type(graph.type_i, graph.order, num_types)
    # One more for each type than rows alone need.
    count = ceil_div(rows, span) + num_types
    slabs = polynomials.new_zeros(count, *polynomials.shape[1:])
    return Spans(count, span, firsts, graph._replace(order=order), slabs)


def by_type(types: Tensor, order: Tensor | None, num_types: int) -> tuple[Tensor, Tensor]:
    """An order of the rows by type, and the first of each type in it."""
    in_order = types if order is None else types[order]
    # A radix sort takes a pass for each byte.
    keys = in_order.to(torch.uint8) if num_types < 256 else in_order
    keys, by_type = keys.sort(stable=True)
    numbers = torch.arange(num_types + 1, dtype=keys.dtype, device=keys.device)
    firsts = torch.searchsorted(keys, numbers)
    return (by_type if order is None else order[by_type]), firsts
