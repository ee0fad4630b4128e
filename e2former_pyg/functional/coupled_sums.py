"""Sums over neighbours, coupled to path rows.

``rows[i] = sum_j C (w_ij ⊗ v_j)`` with the moments of the weights and constant coefficients ``C``,
in blocks of nodes that stay in a core's cache: neither gathered values nor moments exist as a
whole, and of their derivatives only what is asked for.

Shapes: weights ``[G, H, M, T, K]``, values ``[s, H, I, D]``, indices ``[G, H, K]`` into the
``s * H`` rows of the values, path rows ``[G * T, P, H * D]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..precision import autograd_without_autocast
from .paths import Coupling
from .row_sums import RowTable

# Elements of what a block gathers, or of its moments: 1 MiB in float32.
BLOCK_ELEMENTS = 2**18
# On a GPU the calls cost more.
CUDA_BLOCK_ELEMENTS = 2**26


def coupled_sum(weights: Tensor, values: Tensor, index: Tensor, coupling: Coupling) -> Tensor:
    """Path rows of the moments ``sum_k weights[g, h, m, t, k] values[index[g, h, k]]``."""
    return _Rows.apply(weights, values, index, coupling.tables(values.dtype, values.device))


def _blocks(weights: Tensor, values: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of groups, and the values ``[g * H, K, I * D]`` of their slots."""
    groups, heads, moments, targets, slots = weights.shape
    rows = values.flatten(0, 1).flatten(1)
    elements = CUDA_BLOCK_ELEMENTS if values.is_cuda else BLOCK_ELEMENTS
    step = max(elements // (heads * rows.size(1) * max(moments * targets, slots)), 1)
    for start in range(0, groups, step):
        block = slice(start, min(start + step, groups))
        gathered = rows.index_select(0, index[block].flatten())
        yield block, gathered.view(-1, slots, rows.size(1))


def _matrices(weights: Tensor, block: slice) -> Tensor:
    """Weights of a block, ``[g * H, M * T, K]``."""
    return weights[block].flatten(2, 3).flatten(0, 1)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@autograd_without_autocast
class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        values: Tensor,
        index: Tensor,
        tables: tuple[RowTable, RowTable],
    ) -> Tensor:
        ctx.save_for_backward(weights, values, index)
        ctx.tables = tables
        groups, heads, moments, targets, _ = weights.shape
        _, _, inputs, size = values.shape
        parts = []
        for block, gathered in _blocks(weights, values, index):
            sums = torch.bmm(_matrices(weights, block), gathered)
            sums = sums.view(-1, heads, moments, targets, inputs, size)
            columns = sums.permute(2, 4, 0, 3, 1, 5).reshape(moments * inputs, -1)
            parts.append(tables[0].times(columns))
        # Path rows come first in memory, which is how the mixing of paths reads them.
        return _joined(parts, 1).view(-1, groups * targets, heads * size).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        return (*_Adjoint.apply(grad, *ctx.saved_tensors, ctx.tables, needs), None, None)


@autograd_without_autocast
class _Adjoint(torch.autograd.Function):
    """The derivatives of :class:`_Rows` by weights and values."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        weights: Tensor,
        values: Tensor,
        index: Tensor,
        tables: tuple[RowTable, RowTable],
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(grad, weights, values, index)
        ctx.tables, ctx.needs = tables, needs
        ctx.set_materialize_grads(False)
        groups, heads, moments, targets, _ = weights.shape
        _, _, inputs, size = values.shape
        grad = grad.unflatten(0, (groups, targets)).unflatten(-1, (heads, size))
        parts = []
        grad_values = values.new_zeros(values.size(0) * heads, inputs * size) if needs[1] else None
        for block, gathered in _blocks(weights, values, index):
            columns = grad[block].permute(2, 0, 1, 3, 4).reshape(len(tables[0]), -1)
            sums = tables[1].times(columns).view(moments, inputs, -1, targets, heads, size)
            sums = sums.permute(2, 4, 0, 3, 1, 5).reshape(-1, moments * targets, inputs * size)
            if needs[0]:
                parts.append(torch.bmm(sums, gathered.transpose(1, 2)))
            if grad_values is not None:
                change = torch.bmm(_matrices(weights, block).transpose(1, 2), sums)
                grad_values.index_add_(0, index[block].flatten(), change.flatten(0, 1))
        return (
            _joined(parts, 0).view(weights.shape) if needs[0] else None,
            None if grad_values is None else grad_values.view_as(values),
        )

    @staticmethod
    def backward(
        ctx: Any, by_weights: Tensor | None, by_values: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, weights, values, index = ctx.saved_tensors
        need_grad, need_weights, need_values = ctx.needs_input_grad[:3]
        grad_grad: Tensor | None = None
        if need_grad:
            for w, v in ((by_weights, values), (weights, by_values)):
                if w is not None and v is not None:
                    rows = _Rows.apply(w, v, index, ctx.tables)
                    grad_grad = rows if grad_grad is None else grad_grad + rows
        # Of the sum of both products with `grad`: each is linear in what it is not derived by.
        needs = need_weights and by_values is not None, need_values and by_weights is not None
        grad_weights = grad_values = None
        if any(needs):
            grad_weights, grad_values = _Adjoint.apply(
                grad,
                weights if by_weights is None else by_weights,
                values if by_values is None else by_values,
                index,
                ctx.tables,
                needs,
            )
        return grad_grad, grad_weights, grad_values, None, None, None
