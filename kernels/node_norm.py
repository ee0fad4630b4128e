"""Normalisation of the features of a node by one scale, and its derivatives."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .elements import load_wide, store_as
from .operands import next_power_of_2

_ENTRIES = 1024  # of a warp


@triton.jit
def _node(
    x, DEGREES: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Where the features of a program's node are, and what weight their squares have."""
    row = tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = (row < DEGREES * DEGREES) & (channel < CHANNELS)
    first = tl.program_id(0).to(tl.int64) * (DEGREES * DEGREES * CHANNELS)
    degree = row * 0
    for n in tl.static_range(1, DEGREES):
        degree += tl.where(row >= n * n, 1, 0)
    count = (2 * degree + 1) * (DEGREES * CHANNELS)
    if x.dtype.element_ty == tl.float64:
        balance = 1.0 / count.to(tl.float64)
    else:
        balance = 1.0 / count.to(tl.float32)
    return first + row * CHANNELS + channel, mask, balance


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def normalize_kernel(
    x,
    out,
    EPS: tl.constexpr,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes ``s x`` with ``s = (<x, b x> + eps)**-0.5``."""
    place, mask, balance = _node(x, DEGREES, CHANNELS, ROWS, BLOCK)
    value = load_wide(x, place, mask)
    scale = 1.0 / tl.sqrt(_sum(value * value * balance) + EPS)
    store_as(out, place, value * scale, mask)


@triton.jit
def backward_kernel(
    x,
    grad,
    addend,
    out,
    EPS: tl.constexpr,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes ``s g - s**3 <x, g> b x``, and ``addend`` on top."""
    place, mask, balance = _node(x, DEGREES, CHANNELS, ROWS, BLOCK)
    value, g = load_wide(x, place, mask), load_wide(grad, place, mask)
    scale = 1.0 / tl.sqrt(_sum(value * value * balance) + EPS)
    along = scale * scale * scale * _sum(value * g)
    result = scale * g - along * balance * value
    if addend is not None:
        result += load_wide(addend, place, mask)
    store_as(out, place, result, mask)


@triton.jit
def second_kernel(
    x,
    grad,
    cotangent,
    out_x,
    out_grad,
    EPS: tl.constexpr,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the derivatives of ``<h, s g - s**3 <x, g> b x>`` by ``x`` and by ``g``."""
    place, mask, balance = _node(x, DEGREES, CHANNELS, ROWS, BLOCK)
    value, g, h = (
        load_wide(x, place, mask),
        load_wide(grad, place, mask),
        load_wide(cotangent, place, mask),
    )
    bx = value * balance
    scale = 1.0 / tl.sqrt(_sum(value * bx) + EPS)
    cube = scale * scale * scale
    xg, bxh = _sum(value * g), _sum(bx * h)
    by_grad = scale * h - cube * bxh * value
    along = 3 * cube * scale * scale * xg * bxh - cube * _sum(g * h)
    by_x = along * bx - cube * bxh * g - cube * xg * balance * h
    store_as(out_x, place, by_x, mask)
    store_as(out_grad, place, by_grad, mask)


def _launch(kernel: Any, x: Tensor, *tensors: Tensor | None, eps: float) -> None:
    nodes, rows, channels = x.shape
    if x.numel() == 0:
        return
    tile = next_power_of_2(rows), next_power_of_2(channels)
    warps = min(max(tile[0] * tile[1] // _ENTRIES, 1), 32)
    kernel[nodes,](x, *tensors, eps, round(rows**0.5), channels, *tile, num_warps=warps)


def normalize(x: Tensor, eps: float) -> Tensor:
    """``[N, (L + 1)**2, C]`` to the same; see :func:`normalize_kernel`."""
    out = x.new_empty(x.shape)
    _launch(normalize_kernel, x, out, eps=eps)
    return out


def backward(x: Tensor, grad: Tensor, addend: Tensor | None, eps: float) -> Tensor:
    """See :func:`backward_kernel`."""
    out = x.new_empty(x.shape)
    _launch(backward_kernel, x, grad, addend, out, eps=eps)
    return out


def second(x: Tensor, grad: Tensor, cotangent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See :func:`second_kernel`."""
    out_x, out_grad = x.new_empty(x.shape), grad.new_empty(grad.shape)
    _launch(second_kernel, x, grad, cotangent, out_x, out_grad, eps=eps)
    return out_x, out_grad
