r"""Products of features with solid harmonics in the frame whose polar axis is the vector.

There :math:`R^{\ell}` has its component :math:`m = 0` alone, so that of SO(3) its subgroup SO(2)
is left: a path :math:`(l_1, \ell, l_3)` takes each :math:`m_3` from one :math:`m_1`, which is
:math:`m_3` where :math:`l_1+\ell+l_3` is even and :math:`-m_3` where it is odd. Paths are mixed
while the features are there, so that only mixed rows are rotated back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from e2former_pyg.precision import autograd_without_autocast
from e2former_pyg.so3.coupling import coupling_table
from e2former_pyg.so3.degrees import build_constant, is_plain
from e2former_pyg.so3.dense_product import gradient_by_vectors
from e2former_pyg.so3.frames import aligning_rotation, rotation_matrices
from e2former_pyg.so3.paths import Path, Paths


def signed_index(path: Path) -> list[tuple[int, float]]:
    """For each ``m3`` the one ``m1`` that reaches it in the aligned frame (both from 0), and the
    coefficient, which may be zero.
    """
    l1, order, l3 = path
    sign = 1 if (l1 + order + l3) % 2 == 0 else -1
    table = coupling_table(*path)[:, order] * sqrt(2 * order + 1)
    return [
        (l1 + sign * m3, float(table[l1 + sign * m3, l3 + m3])) if abs(m3) <= l1 else (l1, 0.0)
        for m3 in range(-l3, l3 + 1)
    ]


class _Index(NamedTuple):
    """A signed re-index: which row to take, times what, with the length to the power of which."""

    row: Tensor
    coefficient: Tensor
    order: Tensor  # position among the orders


class _Tables(NamedTuple):
    """The signed re-index of all paths."""

    forward: _Index  # of each path row, into the inputs
    back: _Index  # the rows that each input reaches, grouped by input degree; zero on padding
    sizes: tuple[int, ...]  # of `back`, for each input degree


@cache
def _cached_tables(paths: Paths, dtype: torch.dtype, device: torch.device) -> _Tables:
    return build_constant(lambda: _build_tables(paths, dtype, device))


def _tables(paths: Paths, like: Tensor) -> _Tables:
    build = _cached_tables if is_plain(like) else _build_tables
    return build(paths, like.dtype, like.device)


def _build_tables(paths: Paths, dtype: torch.dtype, device: torch.device) -> _Tables:
    forward = [(0, 0.0, 0)] * paths.num_rows
    back: list[tuple[int, float, int]] = []
    sizes = []
    for degree in range(paths.lmax_in + 1):
        mine = [path for path in paths.paths if path.degree_in == degree]
        reached = [[(0, 0.0, 0)] * len(mine) for _ in range(2 * degree + 1)]
        for n, path in enumerate(mine):
            order = paths.orders.index(path.order)
            for row, (m1, value) in zip(paths.row_of(path), signed_index(path), strict=True):
                forward[row] = (degree**2 + m1, value, order)
                if value != 0:
                    reached[m1][n] = (row, value, order)
        back += [entry for entries in reached for entry in entries]
        sizes.append(len(mine) * (2 * degree + 1))

    return _Tables(_index(forward, dtype, device), _index(back, dtype, device), tuple(sizes))


def _index(
    entries: list[tuple[int, float, int]], dtype: torch.dtype, device: torch.device
) -> _Index:
    row, coefficient, order = zip(*entries, strict=True)
    return _Index(
        torch.tensor(row, device=device),
        torch.tensor(coefficient, dtype=dtype, device=device),
        torch.tensor(order, device=device),
    )


class Frame:
    """The frame of each vector: rotation matrices, and the signed re-index scaled by its length.

    Args:
        paths (Paths): The paths.
        r (torch.Tensor): The vectors, ``[N, 3]``.
    """

    def __init__(self, paths: Paths, r: Tensor) -> None:
        self.paths = paths
        length, matrix = aligning_rotation(r.detach())
        self.matrices = rotation_matrices(max(paths.lmax_in, paths.lmax_out), matrix)
        self.powers = torch.stack([length**order for order in paths.orders], dim=-1)

    def rotate(self, x: Tensor, copies: Sequence[int], inverse: bool = False) -> Tensor:
        """Rotates rows of all degrees into the frame, or out of it. Degree ``l`` has ``copies[l]``
        sets of rows, ``m`` slowest.
        """
        blocks = x.split([(2 * degree + 1) * n for degree, n in enumerate(copies)], dim=1)
        parts = [blocks[0]]
        for degree, block in enumerate(blocks[1:], start=1):
            matrix = self.matrices[degree]
            if inverse:
                matrix = matrix.transpose(1, 2)
            sets = block.reshape(block.size(0), 2 * degree + 1, copies[degree] * block.size(2))
            parts.append(torch.bmm(matrix, sets).view_as(block))
        return torch.cat(parts, dim=1)

    def reindex(self, x: Tensor) -> Tensor:
        """Path rows of inputs, both in the frame."""
        return self._take(x, _tables(self.paths, x).forward)

    def reindex_back(self, rows: Tensor) -> Tensor:
        """The adjoint of :meth:`reindex`, as sums of rows: no order of additions is left open."""
        tables = _tables(self.paths, rows)
        parts = []
        for degree, part in enumerate(self._take(rows, tables.back).split(tables.sizes, dim=1)):
            size = 2 * degree + 1
            parts.append(part.unflatten(1, (size, part.size(1) // size)).sum(dim=2))
        return torch.cat(parts, dim=1)

    def _take(self, rows: Tensor, index: _Index) -> Tensor:
        scale = self.powers.index_select(1, index.order) * index.coefficient
        # In place: a second copy of all rows would cost more than all else here.
        return rows.index_select(1, index.row).mul_(scale.unsqueeze(-1))


def mix(paths: Paths, rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Mixes the paths and channels of each output degree: ``[N, P, C]`` to ``[N, outputs, C']``."""
    parts = []
    for degree, (part, weight) in enumerate(zip(_by_degree(paths, rows), weights, strict=True)):
        parts.append(part.reshape(part.size(0), 2 * degree + 1, weight.size(0)) @ weight)
    return torch.cat(parts, dim=1)


def unmix(paths: Paths, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The adjoint of :func:`mix` by the rows."""
    parts = []
    for degree, (weight, copies) in enumerate(zip(weights, paths.paths_per_degree, strict=True)):
        if copies == 0:
            continue
        part = x[:, degree**2 : (degree + 1) ** 2] @ weight.t()
        parts.append(part.reshape(x.size(0), (2 * degree + 1) * copies, -1))
    return torch.cat(parts, dim=1)


def _by_degree(paths: Paths, rows: Tensor) -> tuple[Tensor, ...]:
    sizes = [(2 * degree + 1) * n for degree, n in enumerate(paths.paths_per_degree)]
    return rows.split(sizes, dim=1)


def aligned_rows(frame: Frame, x: Tensor, r: Tensor) -> Tensor:
    """Path rows ``[N, P, C]`` of ``x [N, inputs, C]`` and ``r [N, 3]``, evaluated in the frame."""
    return _Product.apply(frame, x, r)


def aligned_mixed(frame: Frame, x: Tensor, r: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same with paths mixed in the frame, ``[N, outputs, C']``."""
    return _Product.apply(frame, x, r, *weights)


# With y = mix(rows(x, r), weights), the sum of y times a cotangent is linear in x, in the cotangent
# and in the weights. The three functions below are its derivatives by one of them, and the
# derivatives of each are the other two. None of them differentiates a frame: for the vectors there
# is `gradient_by_vectors`, which holds at zero and on every axis.


def _single(lmax: int) -> list[int]:
    return [1] * (lmax + 1)


def _value(frame: Frame, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    paths = frame.paths
    rows = frame.reindex(frame.rotate(x, _single(paths.lmax_in)))
    if not weights:
        return frame.rotate(rows, paths.paths_per_degree, inverse=True)
    return frame.rotate(mix(paths, rows, weights), _single(paths.lmax_out), inverse=True)


def _by_vectors(
    frame: Frame, x: Tensor, grad: Tensor, r: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    rows = unmix(frame.paths, grad, weights) if weights else grad
    return gradient_by_vectors(frame.paths, x, rows, r)


def _by_others(
    frame: Frame, x: Tensor, grad: Tensor, r: Tensor, weights: Sequence[Tensor], needs: Any
) -> tuple[Tensor | None, ...]:
    """The derivatives by the vectors and by the weights."""
    need_r, *need_weights = needs
    by_weights: Sequence[Tensor | None] = [None] * len(weights)
    if any(need_weights):
        by_weights = _ByWeights.apply(frame, x, grad, r)
    return (_by_vectors(frame, x, grad, r, weights) if need_r else None, *by_weights)


@autograd_without_autocast
class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frame: Frame, x: Tensor, r: Tensor, *weights: Tensor) -> Tensor:
        ctx.frame = frame
        ctx.save_for_backward(x, r, *weights)
        return _value(frame, x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, r, *weights = ctx.saved_tensors
        _, need_x, *needs = ctx.needs_input_grad
        by_x = _ByInputs.apply(ctx.frame, grad, r, *weights) if need_x else None
        return (None, by_x, *_by_others(ctx.frame, x, grad, r, weights, needs))


@autograd_without_autocast
class _ByInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frame: Frame, grad: Tensor, r: Tensor, *weights: Tensor) -> Tensor:
        ctx.frame = frame
        ctx.save_for_backward(grad, r, *weights)
        paths = frame.paths
        if weights:
            rows = unmix(paths, frame.rotate(grad, _single(paths.lmax_out)), weights)
        else:
            rows = frame.rotate(grad, paths.paths_per_degree)
        return frame.rotate(frame.reindex_back(rows), _single(paths.lmax_in), inverse=True)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Any, ...]:
        grad, r, *weights = ctx.saved_tensors
        _, need_grad, *needs = ctx.needs_input_grad
        by_grad = _Product.apply(ctx.frame, x, r, *weights) if need_grad else None
        return (None, by_grad, *_by_others(ctx.frame, x, grad, r, weights, needs))


@autograd_without_autocast
class _ByWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frame: Frame, x: Tensor, grad: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        ctx.frame = frame
        ctx.save_for_backward(x, grad, r)
        paths = frame.paths
        rows = frame.reindex(frame.rotate(x, _single(paths.lmax_in)))
        grad = frame.rotate(grad, _single(paths.lmax_out))
        parts = []
        for degree, part in enumerate(_by_degree(paths, rows)):
            size = paths.paths_per_degree[degree] * x.size(2)
            mine = grad[:, degree**2 : (degree + 1) ** 2].flatten(0, 1)
            parts.append(part.reshape(mine.size(0), size).t() @ mine)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Any, ...]:
        x, grad, r = ctx.saved_tensors
        need_x, need_grad, need_r = ctx.needs_input_grad[1:]
        return (
            None,
            _ByInputs.apply(ctx.frame, grad, r, *weights) if need_x else None,
            _Product.apply(ctx.frame, x, r, *weights) if need_grad else None,
            _by_vectors(ctx.frame, x, grad, r, weights) if need_r else None,
        )
