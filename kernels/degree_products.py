"""Products of the halves of a node's channels, summed over the rows of each degree."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .operands import ceil_div, next_power_of_2

_ENTRIES = 512  # of a program


@triton.jit(do_not_specialize=["nodes"])
def sums_kernel(
    a,
    b,
    out,
    nodes,
    DEGREES: tl.constexpr,
    HALF: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the sum of ``a_left b_right + a_right b_left``, without ``b`` of ``a_left a_right``,
    over the root of ``2 l + 1``.
    """
    node = tl.program_id(0).to(tl.int64) * NODES + tl.arange(0, NODES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (node < nodes) & (channel < HALF)
    for degree in tl.static_range(DEGREES):
        total = tl.zeros([NODES, BLOCK], tl.float32)
        if a.dtype.element_ty == tl.float64:
            total = total.to(tl.float64)
        for m in range(2 * degree + 1):
            left = (node * (DEGREES * DEGREES) + degree * degree + m) * (2 * HALF) + channel
            a_left = tl.load(a + left, mask=mask, other=0.0).to(total.dtype)
            a_right = tl.load(a + left + HALF, mask=mask, other=0.0).to(total.dtype)
            if b is None:
                total += a_left * a_right
            else:
                total += a_left * tl.load(b + left + HALF, mask=mask, other=0.0)
                total += a_right * tl.load(b + left, mask=mask, other=0.0)
        total *= (2 * degree + 1) ** -0.5
        where = (node * DEGREES + degree) * HALF + channel
        tl.store(out + where, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["nodes"])
def spread_kernel(
    sums,
    a,
    out,
    nodes,
    DEGREES: tl.constexpr,
    HALF: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes ``a_right`` and ``a_left`` times the entry of their degree, over the same root."""
    node = tl.program_id(0).to(tl.int64) * NODES + tl.arange(0, NODES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (node < nodes) & (channel < HALF)
    for degree in tl.static_range(DEGREES):
        where = (node * DEGREES + degree) * HALF + channel
        factor = tl.load(sums + where, mask=mask, other=0.0)
        if a.dtype.element_ty != tl.float64:
            factor = factor.to(tl.float32)
        factor *= (2 * degree + 1) ** -0.5
        for m in range(2 * degree + 1):
            left = (node * (DEGREES * DEGREES) + degree * degree + m) * (2 * HALF) + channel
            a_left = tl.load(a + left, mask=mask, other=0.0)
            a_right = tl.load(a + left + HALF, mask=mask, other=0.0)
            tl.store(out + left, (factor * a_right).to(out.dtype.element_ty), mask=mask)
            tl.store(out + left + HALF, (factor * a_left).to(out.dtype.element_ty), mask=mask)


def _grid(nodes: int, half: int) -> tuple[tuple[int, int], int, int]:
    block = min(next_power_of_2(half), 128)
    count = _ENTRIES // block
    return (ceil_div(nodes, count), ceil_div(half, block)), count, block


def sums(a: Tensor, b: Tensor | None) -> Tensor:
    """``[N, (L + 1)**2, 2 h]`` to ``[N, (L + 1) h]``; see :func:`sums_kernel`."""
    nodes, rows, channels = a.shape
    degrees = round(rows**0.5)
    out = a.new_empty(nodes, degrees * (channels // 2))
    grid, count, block = _grid(nodes, channels // 2)
    if out.numel() > 0:
        sums_kernel[grid](a, b, out, nodes, degrees, channels // 2, count, block)
    return out


def spread(sums: Tensor, a: Tensor) -> Tensor:
    """``[N, (L + 1) h]`` and ``[N, (L + 1)**2, 2 h]`` to the latter; see :func:`spread_kernel`."""
    nodes, rows, channels = a.shape
    out = a.new_empty(a.shape)
    grid, count, block = _grid(nodes, channels // 2)
    if out.numel() > 0:
        spread_kernel[grid](sums, a, out, nodes, round(rows**0.5), channels // 2, count, block)
    return out
