"""Gates of the rows of each degree, and their derivatives."""

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
    gates,
    out,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes ``x sigmoid(x)`` of scalars and ``x sigmoid(gate of the degree)`` of other rows."""
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    place = node * (DEGREES * DEGREES * CHANNELS) + channel
    value = load_wide(x, place, mask)
    store_as(out, place, value * _sigmoid(value), mask)
    for degree in tl.static_range(1, DEGREES):
        where = (node * (DEGREES - 1) + degree - 1) * CHANNELS + channel
        gate = _sigmoid(load_wide(gates, where, mask))
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            store_as(
                out, place + row * CHANNELS, gate * load_wide(x, place + row * CHANNELS, mask), mask
            )


@triton.jit(do_not_specialize=["nodes"])
def backward_kernel(
    x,
    gates,
    grad,
    out_x,
    out_gates,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the derivatives by ``x`` and by the gates."""
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    place = node * (DEGREES * DEGREES * CHANNELS) + channel
    value = load_wide(x, place, mask)
    gate = _sigmoid(value)
    store_as(out_x, place, load_wide(grad, place, mask) * gate * (1 + value * (1 - gate)), mask)
    for degree in tl.static_range(1, DEGREES):
        where = (node * (DEGREES - 1) + degree - 1) * CHANNELS + channel
        gate = _sigmoid(load_wide(gates, where, mask))
        total = gate * 0
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            g = load_wide(grad, place + row * CHANNELS, mask)
            total += g * load_wide(x, place + row * CHANNELS, mask)
            store_as(out_x, place + row * CHANNELS, gate * g, mask)
        store_as(out_gates, where, total * gate * (1 - gate), mask)


@triton.jit(do_not_specialize=["nodes"])
def second_kernel(
    x,
    gates,
    grad,
    cotangent_x,
    cotangent_gates,
    out_x,
    out_gates,
    out_grad,
    nodes,
    DEGREES: tl.constexpr,
    CHANNELS: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the derivatives of the sum of both results of :func:`backward_kernel` times their
    cotangents.
    """
    node, channel, mask = _entries(nodes, CHANNELS, NODES, BLOCK)
    place = node * (DEGREES * DEGREES * CHANNELS) + channel
    value, g, h = (
        load_wide(x, place, mask),
        load_wide(grad, place, mask),
        load_wide(cotangent_x, place, mask),
    )
    gate = _sigmoid(value)
    slope = gate * (1 - gate)
    store_as(out_grad, place, h * gate * (1 + value * (1 - gate)), mask)
    store_as(out_x, place, h * g * slope * (2 + value * (1 - 2 * gate)), mask)
    for degree in tl.static_range(1, DEGREES):
        where = (node * (DEGREES - 1) + degree - 1) * CHANNELS + channel
        gate = _sigmoid(load_wide(gates, where, mask))
        slope = gate * (1 - gate)
        turned = load_wide(cotangent_gates, where, mask) * slope
        along = gate * 0
        across = gate * 0
        for row in range(degree * degree, (degree + 1) * (degree + 1)):
            g = load_wide(grad, place + row * CHANNELS, mask)
            h = load_wide(cotangent_x, place + row * CHANNELS, mask)
            value = load_wide(x, place + row * CHANNELS, mask)
            along += g * value
            across += g * h
            store_as(out_grad, place + row * CHANNELS, gate * h + turned * value, mask)
            store_as(out_x, place + row * CHANNELS, turned * g, mask)
        store_as(out_gates, where, slope * across + turned * (1 - 2 * gate) * along, mask)


def _launch(kernel: Any, *tensors: Tensor) -> None:
    nodes, rows, channels = tensors[0].shape
    if tensors[0].numel() == 0:
        return
    block = min(next_power_of_2(channels), 128)
    count = _ENTRIES // block
    grid = ceil_div(nodes, count), ceil_div(channels, block)
    kernel[grid](*tensors, nodes, round(rows**0.5), channels, count, block)


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``[N, (L + 1)**2, C]`` and ``[N, L C]`` to the former; see :func:`gate_kernel`."""
    out = x.new_empty(x.shape)
    _launch(gate_kernel, x, gates, out)
    return out


def backward(x: Tensor, gates: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`backward_kernel`."""
    outs = x.new_empty(x.shape), gates.new_empty(gates.shape)
    _launch(backward_kernel, x, gates, grad, *outs)
    return outs


def second(
    x: Tensor, gates: Tensor, grad: Tensor, cotangent_x: Tensor, cotangent_gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`second_kernel`."""
    outs = x.new_empty(x.shape), gates.new_empty(gates.shape), grad.new_empty(grad.shape)
    _launch(second_kernel, x, gates, grad, cotangent_x, cotangent_gates, *outs)
    return outs
