"""Chunk by chunk evaluation that keeps only node-sized tensors, to the second derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import autograd_without_autocast
from .chunks import Chunk
from .sharing import shared


class Axis(Enum):
    """What the first dimension of an input runs over."""

    TARGET = "target"
    SOURCE = "source"
    EDGE = "edge"
    SHARED = "shared"


# Takes a chunk and its part of each input, returns a row for each place of a target. Padded slots
# must not contribute, so that their gradients are zero.
ChunkFunction = Callable[..., Tensor]
Input = Tensor | None


def chunked(
    function: ChunkFunction,
    chunks: Sequence[Chunk],
    out: Callable[[], Tensor],
    axes: Sequence[Axis],
    inputs: Sequence[Input],
) -> Tensor:
    """Evaluates ``function(chunk, *selected inputs)`` on every chunk.

    A single chunk goes through autograd as it is. Several chunks are recomputed in the backward
    and in the double backward, so that the peak is set by the size of one chunk. Without a chunk
    the result still belongs to the graph, with zero derivatives: a lone atom has zero forces.

    Args:
        function (callable): The function of a chunk: a row for each of its places.
        chunks (list): The chunks.
        out (callable): Makes zeros, one row for each target; the result where no chunk is.
        axes (list): What the first dimension of each input runs over.
        inputs (list): Tensors (of indices, too) or ``None``.
    """
    if len(chunks) == 1 and chunks[0].rows is None:
        return _rows(function, chunks[0], _select_all(chunks[0], axes, inputs))
    return _Chunked.apply(function, chunks, out(), tuple(axes), *inputs)


def _index(chunk: Chunk, axis: Axis) -> Tensor | None:
    """The positions along ``axis`` that a chunk reads; ``None`` for all."""
    if axis is Axis.TARGET:
        return chunk.targets
    if axis is Axis.SOURCE:
        return chunk.sources
    return chunk.edge if axis is Axis.EDGE else None


def _select(chunk: Chunk, axis: Axis, tensor: Input) -> Input:
    """The part of an input that a chunk reads."""
    index = _index(chunk, axis)
    if tensor is None or index is None:
        return tensor
    if chunk.rows is not None:
        return tensor[index]
    return shared((chunk, axis), (tensor,), lambda: tensor[index])


def _select_all(chunk: Chunk, axes: Sequence[Axis], inputs: Sequence[Input]) -> list[Input]:
    """The parts of the inputs that a chunk reads."""
    return [_select(chunk, axis, tensor) for axis, tensor in zip(axes, inputs, strict=True)]


def _rows(function: ChunkFunction, chunk: Chunk, parts: Sequence[Input]) -> Tensor:
    """A row for each target."""
    rows = function(chunk, *parts)
    return rows if chunk.places is None else rows.index_select(0, chunk.places)


def _add_all(
    totals: Sequence[Input], chunk: Chunk, axes: Sequence[Axis], parts: Sequence[Input]
) -> None:
    """The adjoint of :func:`_select_all`."""
    for total, axis, part in zip(totals, axes, parts, strict=True):
        if total is None or part is None:
            continue
        index = _index(chunk, axis)
        if index is None:
            total += part
        else:
            total.index_add_(0, index.flatten(), part.flatten(0, index.dim() - 1))


def _zeros(inputs: Sequence[Input], needs: Sequence[bool]) -> list[Input]:
    return [
        torch.zeros_like(tensor) if need and tensor is not None else None
        for tensor, need in zip(inputs, needs, strict=True)
    ]


def _leaves(
    chunk: Chunk, axes: Sequence[Axis], inputs: Sequence[Input], needs: Sequence[bool]
) -> list[Input]:
    """Parts of the inputs, detached, as leaves where a gradient is needed."""
    return [
        part if part is None else part.detach().requires_grad_(need)
        for part, need in zip(_select_all(chunk, axes, inputs), needs, strict=True)
    ]


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Input],
    grad_outputs: Sequence[Tensor],
    create_graph: bool = False,
) -> list[Input]:
    """``torch.autograd.grad`` that passes over inputs that are ``None`` or not leaves."""
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    grads = iter(
        torch.autograd.grad(
            outputs, wanted, grad_outputs, create_graph=create_graph, allow_unused=True
        )
    )
    return [
        next(grads) if tensor is not None and tensor.requires_grad else None for tensor in inputs
    ]


@autograd_without_autocast
class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: ChunkFunction,
        chunks: Sequence[Chunk],
        out: Tensor,
        axes: tuple[Axis, ...],
        *inputs: Input,
    ) -> Tensor:
        ctx.function, ctx.chunks, ctx.axes = function, chunks, axes
        ctx.save_for_backward(*inputs)
        out = out.clone()
        for chunk in chunks:
            out[chunk.rows] = _rows(function, chunk, _select_all(chunk, axes, inputs))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Input, ...]:
        needs = ctx.needs_input_grad[4:]
        return (None,) * 4 + _ChunkedBackward.apply(
            ctx.function, ctx.chunks, ctx.axes, needs, grad_out, *ctx.saved_tensors
        )


@autograd_without_autocast
class _ChunkedBackward(torch.autograd.Function):
    """Vector-Jacobian product of :class:`_Chunked`."""

    @staticmethod
    def forward(
        ctx: Any,
        function: ChunkFunction,
        chunks: Sequence[Chunk],
        axes: tuple[Axis, ...],
        needs: tuple[bool, ...],
        grad_out: Tensor,
        *inputs: Input,
    ) -> tuple[Input, ...]:
        ctx.function, ctx.chunks, ctx.axes, ctx.needs = function, chunks, axes, needs
        ctx.save_for_backward(grad_out, *inputs)
        totals = _zeros(inputs, needs)
        for chunk in chunks:
            leaves = _leaves(chunk, axes, inputs, needs)
            with torch.enable_grad():
                out = _rows(function, chunk, leaves)
            _add_all(totals, chunk, axes, _grad([out], leaves, [grad_out[chunk.rows]]))
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Input) -> tuple[Input, ...]:
        grad_out, *inputs = ctx.saved_tensors
        needs = ctx.needs_input_grad[5:]
        totals = _zeros(inputs, needs)
        total_out = torch.zeros_like(grad_out)
        for chunk in ctx.chunks:
            first = _leaves(chunk, ctx.axes, inputs, ctx.needs)
            weights = _select_all(chunk, ctx.axes, cotangents)
            leaf_out = grad_out[chunk.rows].detach().requires_grad_()
            with torch.enable_grad():
                out = _rows(ctx.function, chunk, first)
                grads = _grad([out], first, [leaf_out], create_graph=True)
            pairs = [
                (grad, weight)
                for grad, weight in zip(grads, weights, strict=True)
                if grad is not None and weight is not None and grad.requires_grad
            ]
            if not pairs:
                continue
            part_out, *parts = _grad(
                [grad for grad, _ in pairs], [leaf_out, *first], [weight for _, weight in pairs]
            )
            if part_out is not None:
                total_out[chunk.rows] = part_out
            _add_all(totals, chunk, ctx.axes, parts)
        return (*(None,) * 4, total_out, *totals)
