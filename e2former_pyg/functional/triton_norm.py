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


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _differentiate_normalize(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.e2former_pyg.normalize_backward(x, grad, None, ctx.eps), None


def _backward(x: Tensor, grad: Tensor, addend: Tensor | None, eps: float) -> Tensor:
    addend = None if addend is None else addend.contiguous()
    with torch.cuda.device_of(x):
        return kernels.backward(x.contiguous(), grad.contiguous(), addend, eps)


def _fake_backward(x: Tensor, grad: Tensor, addend: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad, _, ctx.eps = inputs
    ctx.save_for_backward(x, grad)


def _differentiate_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors
    by_x, by_grad = torch.ops.e2former_pyg.normalize_second(x, grad, cotangent, ctx.eps)
    return by_x, by_grad, cotangent if ctx.needs_input_grad[3] else None, None


def _second(x: Tensor, grad: Tensor, cotangent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.second(x.contiguous(), grad.contiguous(), cotangent.contiguous(), eps)


def _fake_second(x: Tensor, grad: Tensor, cotangent: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


register(
    "normalize(Tensor x, float eps) -> Tensor",
    _normalize,
    _fake_normalize,
    _setup_normalize,
    _differentiate_normalize,
)
register(
    "normalize_backward(Tensor x, Tensor grad, Tensor? addend, float eps) -> Tensor",
    _backward,
    _fake_backward,
    _setup_backward,
    _differentiate_backward,
)
register(
    "normalize_second(Tensor x, Tensor grad, Tensor cotangent, float eps) -> (Tensor, Tensor)",
    _second,
    _fake_second,
    save_nothing,
    no_derivative("normalisation has derivatives to second order"),
)


class _NormalizeWithInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.eps = eps
        return torch.ops.e2former_pyg.normalize(x, eps), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, addend: Tensor | None) -> tuple[Any, None]:
        (x,) = ctx.saved_tensors
        if grad is None:
            return addend, None
        return torch.ops.e2former_pyg.normalize_backward(x, grad, addend, ctx.eps), None


def normalize(x: Tensor, eps: float) -> Tensor:
    """As :func:`~e2former_pyg.functional.node_norm.normalize`."""
    out: Tensor = torch.ops.e2former_pyg.normalize(x, eps)
    return out


def normalize_with_input(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As :func:`~e2former_pyg.functional.node_norm.normalize_with_input`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return normalize(x, eps), x
    both: tuple[Tensor, Tensor] = _NormalizeWithInput.apply(x, eps)
    return both
