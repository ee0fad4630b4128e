"""Gates of the rows of each degree, and their derivatives.

A node's input has its scalars first, then the gates of each degree above 0, then the other rows, as
one linear map writes them.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .elements import load_wide, store_as
from .operands import ceil_div, next_power_of_2

_ENTRIES = 512  # of a program


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _entries(nodes, CHANNELS: tl.constexpr, NODES: tl.constexpr, BLOCK: tl.constexpr):
    node = tl.program_id(0).to(tl.int64) * NODES + tl.arange(0, NODES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return node, channel, (node < nodes) & (channel < CHANNELS)


@triton.jit(do_not_specialize=["nodes"])
def gate_kernel(
    x,
    out,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes ``x sigmoid(x)`` of scalars and ``x sigmoid(gate of the degree)`` of other rows."""
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    GATES: tl.constexpr = DEGREES - 1
    place = node * ((DEGREES * DEGREES + GATES) * CHANNELS) + channel
    target = node * (DEGREES * DEGREES * CHANNELS) + channel
    value = load_wide(x, place, mask)
    store_as(out, target, value * _sigmoid(value), mask)
    for degree in tl.static_range(1, DEGREES):
        gate = _sigmoid(load_wide(x, place + degree * CHANNELS, mask))
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            value = load_wide(x, place + (GATES + row) * CHANNELS, mask)
            store_as(out, target + row * CHANNELS, gate * value, mask)


@triton.jit(do_not_specialize=["nodes"])
def backward_kernel(
    x,
    grad,
    out,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the derivatives by the input."""
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    GATES: tl.constexpr = DEGREES - 1
    place = node * ((DEGREES * DEGREES + GATES) * CHANNELS) + channel
    source = node * (DEGREES * DEGREES * CHANNELS) + channel
    value = load_wide(x, place, mask)
    gate = _sigmoid(value)
    store_as(out, place, load_wide(grad, source, mask) * gate * (1 + value * (1 - gate)), mask)
    for degree in tl.static_range(1, DEGREES):
        gate = _sigmoid(load_wide(x, place + degree * CHANNELS, mask))
        total = gate * 0
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            g = load_wide(grad, source + row * CHANNELS, mask)
            where = place + (GATES + row) * CHANNELS
            total += g * load_wide(x, where, mask)
            store_as(out, where, gate * g, mask)
        store_as(out, place + degree * CHANNELS, total * gate * (1 - gate), mask)


@triton.jit(do_not_specialize=["nodes"])
def second_kernel(
    x,
    grad,
    cotangent,
    out_x,
    out_grad,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the derivatives of the result of :func:`backward_kernel` times a cotangent."""
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    GATES: tl.constexpr = DEGREES - 1
    place = node * ((DEGREES * DEGREES + GATES) * CHANNELS) + channel
    source = node * (DEGREES * DEGREES * CHANNELS) + channel
    value, g, h = (
        load_wide(x, place, mask),
        load_wide(grad, source, mask),
        load_wide(cotangent, place, mask),
    )
    gate = _sigmoid(value)
    slope = gate * (1 - gate)
    store_as(out_grad, source, h * gate * (1 + value * (1 - gate)), mask)
    store_as(out_x, place, h * g * slope * (2 + value * (1 - 2 * gate)), mask)
    for degree in tl.static_range(1, DEGREES):
        at_gate = place + degree * CHANNELS
        gate = _sigmoid(load_wide(x, at_gate, mask))
        slope = gate * (1 - gate)
        turned = load_wide(cotangent, at_gate, mask) * slope
        along = gate * 0
        across = gate * 0
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            where = place + (GATES + row) * CHANNELS
            g = load_wide(grad, source + row * CHANNELS, mask)
            h = load_wide(cotangent, where, mask)
            value = load_wide(x, where, mask)
            along += g * value
            across += g * h
            store_as(out_grad, source + row * CHANNELS, gate * h + turned * value, mask)
            store_as(out_x, where, turned * g, mask)
        store_as(out_x, at_gate, slope * across + turned * (1 - 2 * gate) * along, mask)


def _launch(kernel: Any, lmax: int, *tensors: Tensor) -> None:
    nodes, _, channels = tensors[0].shape
    if tensors[0].numel() == 0:
        return
    block = min(next_power_of_2(channels), 128)
    count = _ENTRIES // block
    grid = ceil_div(nodes, count), ceil_div(channels, block)
    kernel[grid](*tensors, nodes, lmax + 1, channels, count, block)


def gate(x: Tensor, lmax: int) -> Tensor:
    """``[N, L + (L + 1)**2, C]`` to ``[N, (L + 1)**2, C]``; see :func:`gate_kernel`."""
    out = x.new_empty(x.size(0), (lmax + 1) ** 2, x.size(2))
    _launch(gate_kernel, lmax, x, out)
    return out


def backward(x: Tensor, grad: Tensor, lmax: int) -> Tensor:
    """See :func:`backward_kernel`."""
    out = x.new_empty(x.shape)
    _launch(backward_kernel, lmax, x, grad, out)
    return out


def second(x: Tensor, grad: Tensor, cotangent: Tensor, lmax: int) -> tuple[Tensor, Tensor]:
    """See :func:`second_kernel`."""
    outs = x.new_empty(x.shape), grad.new_empty(grad.shape)
    _launch(second_kernel, lmax, x, grad, cotangent, *outs)
    return outs
