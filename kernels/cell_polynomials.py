"""From coefficients of B-splines to a polynomial for each cell, in the layout of ``Operands``, and
the transpose of that.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operands import ceil_div

_BLOCK = 256


@triton.jit
def _place(index, cells, heads: tl.constexpr, functions: tl.constexpr):
    """Of an entry ``[pair, cell, head, function]``: the pair, the cell and the column of its
    coefficients.
    """
    function = index % functions
    head = index // functions % heads
    cell = index // (functions * heads) % cells
    pair = index // (functions * heads) // cells
    return pair, cell, function * heads + head


@triton.jit(do_not_specialize=["size", "cells"])
def polynomials_kernel(
    coefficients,
    out,
    size,
    cells,
    HEADS: tl.constexpr,
    FUNCTIONS: tl.constexpr,
    BASIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the four coefficients of the polynomial of each entry."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair, cell, column = _place(index, cells, HEADS, FUNCTIONS)
    first = (pair * (cells + 3) + cell) * (HEADS * FUNCTIONS) + column
    for power in tl.static_range(4):
        total = tl.zeros([BLOCK], out.dtype.element_ty)
        for n in tl.static_range(4):
            where = coefficients + first + n * HEADS * FUNCTIONS
            value = tl.load(where, mask=index < size, other=0.0)
            total += BASIS[power][n] * value.to(total.dtype)
        tl.store(out + 4 * index + power, total, mask=index < size)


@triton.jit(do_not_specialize=["size", "cells"])
def coefficients_kernel(
    polynomials,
    out,
    size,
    cells,
    HEADS: tl.constexpr,
    FUNCTIONS: tl.constexpr,
    BASIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes for each coefficient the sum over the cells that it reaches."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = index % (HEADS * FUNCTIONS)
    knot = index // (HEADS * FUNCTIONS) % (cells + 3)
    pair = index // (HEADS * FUNCTIONS) // (cells + 3)
    entry = column % HEADS * FUNCTIONS + column // HEADS
    total = tl.zeros([BLOCK], polynomials.dtype.element_ty)
    for n in tl.static_range(4):
        cell = knot - n
        inside = (index < size) & (cell >= 0) & (cell < cells)
        first = ((pair * cells + cell) * (HEADS * FUNCTIONS) + entry) * 4
        for power in tl.static_range(4):
            value = tl.load(polynomials + first + power, mask=inside, other=0.0)
            total += BASIS[power][n] * value
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < size)


def polynomials(coefficients: Tensor, heads: int, dtype: torch.dtype, basis: Any) -> Tensor:
    """``[T_t, T_s, K, F H]`` to ``[T_t, T_s, K - 3, H, F, 4]``, in another dtype."""
    targets, sources, knots, columns = coefficients.shape
    shape = targets, sources, knots - 3, heads, columns // heads, 4
    out = coefficients.new_empty(shape, dtype=dtype)
    size = out.numel() // 4
    if size > 0:
        polynomials_kernel[(ceil_div(size, _BLOCK),)](
            *(coefficients, out, size, knots - 3, heads, columns // heads, basis, _BLOCK)
        )
    return out


def coefficients(polynomials: Tensor, dtype: torch.dtype, basis: Any) -> Tensor:
    """The transpose of :func:`polynomials`."""
    targets, sources, cells, heads, functions, _ = polynomials.shape
    out = polynomials.new_empty(targets, sources, cells + 3, heads * functions, dtype=dtype)
    if out.numel() > 0:
        coefficients_kernel[(ceil_div(out.numel(), _BLOCK),)](
            *(polynomials, out, out.numel(), cells, heads, functions, basis, _BLOCK)
        )
    return out
