"""Products of halves of the channels as Triton kernels. Two bilinear operators are each other's
derivatives, and give that of the product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import degree_products as kernels
from .registration import register


def _products(x: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.sums(x.contiguous(), None)


def _fake_products(x: Tensor) -> Tensor:
    return x.new_empty(x.size(0), round(x.size(1) ** 0.5) * (x.size(2) // 2))


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_products(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    (x,) = ctx.saved_tensors
    return (torch.ops.e2former_pyg.degree_products_spread(grad, x),)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    with torch.cuda.device_of(a):
        return kernels.sums(a.contiguous(), b.contiguous())


def _fake_sum(a: Tensor, b: Tensor) -> Tensor:
    return _fake_products(a)


def _differentiate_sum(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors
    spread = torch.ops.e2former_pyg.degree_products_spread
    return spread(grad, b), spread(grad, a)


def _spread(sums: Tensor, x: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.spread(sums.contiguous(), x.contiguous())


def _fake_spread(sums: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate_spread(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    sums, x = ctx.saved_tensors
    ops = torch.ops.e2former_pyg
    return ops.degree_products_sum(cotangent, x), ops.degree_products_spread(sums, cotangent)


register(
    "degree_products(Tensor x) -> Tensor",
    _products,
    _fake_products,
    _setup,
    _differentiate_products,
)
register(
    "degree_products_sum(Tensor a, Tensor b) -> Tensor", _sum, _fake_sum, _setup, _differentiate_sum
)
register(
    "degree_products_spread(Tensor sums, Tensor x) -> Tensor",
    _spread,
    _fake_spread,
    _setup,
    _differentiate_spread,
)


def degree_products(x: Tensor) -> Tensor:
    """As :func:`~e2former_pyg.functional.degree_products.degree_products`."""
    out: Tensor = torch.ops.e2former_pyg.degree_products(x)
    return out
