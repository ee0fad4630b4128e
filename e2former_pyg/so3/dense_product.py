"""Products of features with solid harmonics as one matrix per node and input degree.

All coefficients of the paths of an input degree, contracted with the harmonics of a node, make a
matrix ``[rows, 2 * l1 + 1]``; channels meet nothing else. Everything is a polynomial, so autograd
gives exact derivatives of any order everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from e2former_pyg.so3.coupling import coupling_table
from e2former_pyg.so3.degrees import build_constant, is_plain
from e2former_pyg.so3.harmonics import gradient_table, solid_harmonics
from e2former_pyg.so3.paths import Paths


@dataclass(frozen=True, eq=False)
class Tables:
    """Constants of :func:`dense_rows`."""

    coefficients: tuple[Tensor, ...]
    """For each input degree ``[harmonics of the orders, rows * (2 * l1 + 1)]``."""
    rows: tuple[Tensor, ...]
    """The output rows that each input degree reaches."""
    place: Tensor
    """Where each output row lies among the rows sorted by input degree."""
    gradients: tuple[Tensor, ...]
    """For each order what takes ``R^(l-1)`` to the gradient of ``R^l``; nothing for order 0."""


@torch.compiler.assume_constant_result
@cache
def _cached_tables(paths: Paths, dtype: torch.dtype, device: torch.device) -> Tables:
    return build_constant(lambda: _build_tables(paths, dtype, device))


def tables(paths: Paths, like: Tensor) -> Tables:
    """The constants of ``paths``, in the dtype and on the device of ``like``."""
    build = _cached_tables if is_plain(like) else _build_tables
    return build(paths, like.dtype, like.device)


def _build_tables(paths: Paths, dtype: torch.dtype, device: torch.device) -> Tables:
    starts, num_harmonics = {}, 0
    for order in paths.orders:
        starts[order] = num_harmonics
        num_harmonics += 2 * order + 1
    coefficients, rows = [], []
    for degree in range(paths.lmax_in + 1):
        mine = [path for path in paths.paths if path.degree_in == degree]
        rows.append([row for path in mine for row in paths.row_of(path)])
        table = torch.zeros(
            num_harmonics, len(rows[-1]), 2 * degree + 1, dtype=torch.float64, device="cpu"
        )
        start = 0
        for path in mine:
            stop = start + 2 * path.degree_out + 1
            first = starts[path.order]
            part = torch.tensor(coupling_table(*path), device="cpu")
            table[first : first + part.size(1), start:stop] = part.permute(1, 2, 0)
            start = stop
        coefficients.append(table.flatten(1).to(device, dtype))
    flat = torch.tensor([row for part in rows for row in part], dtype=torch.long, device="cpu")
    gradients = [
        torch.tensor(gradient_table(order), device="cpu").permute(2, 1, 0).flatten(1)
        for order in paths.orders
        if order > 0
    ]
    return Tables(
        tuple(coefficients),
        tuple(torch.tensor(part, dtype=torch.long, device=device) for part in rows),
        flat.argsort().to(device),
        tuple(table.to(device, dtype) for table in gradients),
    )


def _of_orders(paths: Paths, harmonics: Tensor) -> Tensor:
    """The harmonics ``[N, M]`` of the orders, of those of all degrees."""
    if paths.orders == tuple(range(len(paths.orders))):
        return harmonics
    return torch.cat([harmonics[:, order**2 : (order + 1) ** 2] for order in paths.orders], dim=1)


def dense_rows(paths: Paths, x: Tensor, r: Tensor) -> Tensor:
    """Path rows ``[N, P, C]``, sorted by input degree, of ``x [N, inputs, C]`` and ``r [N, 3]``."""
    constants = tables(paths, x)
    harmonics = _of_orders(paths, solid_harmonics(max(paths.orders), r))
    parts = []
    for degree, (table, rows) in enumerate(
        zip(constants.coefficients, constants.rows, strict=True)
    ):
        if rows.numel() == 0:
            continue
        matrix = (harmonics @ table).unflatten(1, (rows.numel(), 2 * degree + 1))
        parts.append(torch.bmm(matrix, x[:, degree**2 : (degree + 1) ** 2]))
    return torch.cat(parts, dim=1)


def gradient_by_vectors(paths: Paths, x: Tensor, grad_rows: Tensor, r: Tensor) -> Tensor:
    r"""The derivative by ``r [N, 3]`` of the sum of path rows times ``grad_rows [N, P, C]``.

    Channels are summed first; what is left are cotangents of the harmonics, which meet
    :math:`\nabla R^{\ell}`, a coupling of :math:`R^{\ell-1}`. Differentiable like any composition
    of tensor operations.
    """
    constants = tables(paths, x)
    lmax = max(paths.orders)
    sizes = [2 * order + 1 for order in paths.orders]
    cotangent = x.new_zeros(x.size(0), sum(sizes))
    for degree, (table, rows) in enumerate(
        zip(constants.coefficients, constants.rows, strict=True)
    ):
        part = x[:, degree**2 : (degree + 1) ** 2].transpose(1, 2)
        outer = torch.bmm(grad_rows.index_select(1, rows), part)
        cotangent = cotangent + outer.flatten(1) @ table.t()
    gradient = torch.zeros_like(r)
    if lmax == 0:
        return gradient
    harmonics = solid_harmonics(lmax - 1, r)
    parts = [
        (order, part)
        for order, part in zip(paths.orders, cotangent.split(sizes, dim=1), strict=True)
        if order > 0
    ]
    for (order, part), table in zip(parts, constants.gradients, strict=True):
        below = harmonics[:, (order - 1) ** 2 : order**2].unsqueeze(-1)
        gradient = gradient + ((part @ table).unflatten(1, (3, -1)) @ below).squeeze(-1)
    return gradient
