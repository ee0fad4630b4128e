"""Polynomials of radial functions as a Triton kernel. It and its transpose are operators that are
each other's derivatives.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..kernels import cell_polynomials as kernels
from ..kernels.operands import constants
from ..radial import BASIS
from .registration import register


@cache
def _basis() -> Any:
    return constants(BASIS)


def _polynomials(coefficients: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    with torch.cuda.device_of(coefficients):
        return kernels.polynomials(coefficients.contiguous(), heads, dtype, _basis())


def _fake_polynomials(coefficients: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    targets, sources, knots, columns = coefficients.shape
    shape = targets, sources, knots - 3, heads, columns // heads, 4
    return coefficients.new_empty(shape, dtype=dtype)


def _setup_polynomials(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


def _differentiate_polynomials(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.e2former_pyg.cell_polynomials_transposed(grad, ctx.dtype), None, None


def _transposed(polynomials: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.cuda.device_of(polynomials):
        return kernels.coefficients(polynomials.contiguous(), dtype, _basis())


def _fake_transposed(polynomials: Tensor, dtype: torch.dtype) -> Tensor:
    targets, sources, cells, heads, functions, _ = polynomials.shape
    return polynomials.new_empty(targets, sources, cells + 3, heads * functions, dtype=dtype)


def _setup_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.heads, ctx.dtype = inputs[0].size(3), inputs[0].dtype


def _differentiate_transposed(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
    return torch.ops.e2former_pyg.cell_polynomials(cotangent, ctx.heads, ctx.dtype), None


register(
    "cell_polynomials(Tensor coefficients, int heads, ScalarType dtype) -> Tensor",
    _polynomials,
    _fake_polynomials,
    _setup_polynomials,
    _differentiate_polynomials,
)
register(
    "cell_polynomials_transposed(Tensor polynomials, ScalarType dtype) -> Tensor",
    _transposed,
    _fake_transposed,
    _setup_transposed,
    _differentiate_transposed,
)


def cell_polynomials(coefficients: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    r"""As :meth:`~e2former_pyg.radial.RadialSplines.cell_polynomials`, laid out for the kernels.

    Args:
        coefficients (torch.Tensor): Those of :math:`F H` radial functions, heads fastest.
        heads (int): The number :math:`H` of heads.
        dtype (torch.dtype): The type of the result. Coefficients are cast to it first.

    Shapes:
        - **coefficients:** :math:`(T_t, T_s, K, F H)`
        - **output:** :math:`(T_t, T_s, K - 3, H, F, 4)`
    """
    out: Tensor = torch.ops.e2former_pyg.cell_polynomials(coefficients, heads, dtype)
    return out
