"""Normalisation of nodes as Triton kernels, differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import node_norm as kernels
from .registration import no_derivative, register, save_nothing


def _normalize(x: Tensor, eps: float) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.normalize(x.contiguous(), eps)


def _fake_normalize(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_normalize(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.e2former_pyg.normalize_backward(x, grad, ctx.eps), None


def _backward(x: Tensor, grad: Tensor, eps: float) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.backward(x.contiguous(), grad.contiguous(), eps)


def _fake_backward(x: Tensor, grad: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
    x, grad = ctx.saved_tensors
    second = torch.ops.e2former_pyg.normalize_second
    return (*second(x, grad, cotangent, ctx.eps), None)


def _second(x: Tensor, grad: Tensor, cotangent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.second(x.contiguous(), grad.contiguous(), cotangent.contiguous(), eps)


def _fake_second(x: Tensor, grad: Tensor, cotangent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


register(
    "normalize(Tensor x, float eps) -> Tensor",
    _normalize,
    _fake_normalize,
    _setup,
    _differentiate_normalize,
)
register(
    "normalize_backward(Tensor x, Tensor grad, float eps) -> Tensor",
    _backward,
    _fake_backward,
    _setup,
    _differentiate_backward,
)
register(
    "normalize_second(Tensor x, Tensor grad, Tensor cotangent, float eps) -> (Tensor, Tensor)",
    _second,
    _fake_second,
    save_nothing,
    no_derivative("normalisation has derivatives to second order"),
)


def normalize(x: Tensor, eps: float) -> Tensor:
    """As :func:`~e2former_pyg.functional.node_norm.normalize`."""
    out: Tensor = torch.ops.e2former_pyg.normalize(x, eps)
    return out
