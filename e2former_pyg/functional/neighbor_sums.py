"""Products of node features and edge weights, summed over neighbours or over channels.

Gathered features exist only while a product is computed: what autograd keeps are the weights and
node-sized tensors. Each derivative of the three products is again one of the three, so that they
can be differentiated any number of times.

Shapes: weights ``[n, H, M, K]``, sums ``[n, H, M, d]``, values ``[s, H, d]`` and indices
``[n, H, K]`` into the ``s * H`` rows of the values. The ``M`` sums over the same values are what
targets of a group have together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..precision import autograd_without_autocast


def neighbor_sum(weights: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """``out[n, h, m] = sum_k weights[n, h, m, k] values[index[n, h, k]]``."""
    return _Sum.apply(weights, values, index)


def neighbor_dot(sums: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """``out[n, h, m, k] = sums[n, h, m] . values[index[n, h, k]]``."""
    return _Dot.apply(sums, values, index)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    n, heads, width = index.shape
    rows = values.reshape(-1, values.size(-1)).index_select(0, index.flatten())
    return rows.view(n * heads, width, -1)


def _batched(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, *tensor.shape[2:])


@autograd_without_autocast
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values, index)
        out = torch.bmm(_batched(weights), _gather(values, index))
        return out.unflatten(0, weights.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, values, index = ctx.saved_tensors
        need_weights, need_values, _ = ctx.needs_input_grad
        grad = grad.contiguous()  # batched products of transposed matrices are slow
        return (
            _Dot.apply(grad, values, index) if need_weights else None,
            _Scatter.apply(weights, grad, index, values.size(0)) if need_values else None,
            None,
        )


@autograd_without_autocast
class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(sums, values, index)
        out = torch.bmm(_batched(sums), _gather(values, index).transpose(1, 2))
        return out.unflatten(0, sums.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, values, index = ctx.saved_tensors
        need_sums, need_values, _ = ctx.needs_input_grad
        return (
            _Sum.apply(grad, values, index) if need_sums else None,
            _Scatter.apply(grad, sums, index, values.size(0)) if need_values else None,
            None,
        )


@autograd_without_autocast
class _Scatter(torch.autograd.Function):
    """``out[s] = sum over the slots (n, h, k) of source s of weights[n, h, :, k] . sums[n, h]``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, sums: Tensor, index: Tensor, num_sources: int) -> Tensor:
        ctx.save_for_backward(weights, sums, index)
        heads, size = sums.size(1), sums.size(-1)
        left, right = _batched(weights).transpose(1, 2), _batched(sums)
        # Batched products of vectors take a slow path.
        slots = left * right if right.size(1) == 1 else torch.bmm(left, right)
        out = sums.new_zeros(num_sources * heads, size)
        out.index_add_(0, index.flatten(), slots.reshape(-1, size))
        return out.view(num_sources, heads, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, sums, index = ctx.saved_tensors
        need_weights, need_sums = ctx.needs_input_grad[:2]
        return (
            _Dot.apply(sums, grad, index) if need_weights else None,
            _Sum.apply(weights, grad, index) if need_sums else None,
            None,
            None,
        )
