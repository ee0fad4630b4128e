"""Gates as Triton kernels, differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import gate as kernels
from .registration import no_derivative, register, save_nothing


def _gate(x: Tensor, lmax: int) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.gate(x.contiguous(), lmax)


def _fake_gate(x: Tensor, lmax: int) -> Tensor:
    return x.new_empty(x.size(0), (lmax + 1) ** 2, x.size(2))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.lmax = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_gate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.e2former_pyg.gate_backward(x, grad, ctx.lmax), None


def _backward(x: Tensor, grad: Tensor, lmax: int) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.backward(x.contiguous(), grad.contiguous(), lmax)


def _fake_backward(x: Tensor, grad: Tensor, lmax: int) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate_backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
    x, grad = ctx.saved_tensors
    second = torch.ops.e2former_pyg.gate_second
    return (*second(x, grad, cotangent, ctx.lmax), None)


def _second(x: Tensor, grad: Tensor, cotangent: Tensor, lmax: int) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.second(x.contiguous(), grad.contiguous(), cotangent.contiguous(), lmax)


def _fake_second(x: Tensor, grad: Tensor, cotangent: Tensor, lmax: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), grad.new_empty(grad.shape)


register("gate(Tensor x, int lmax) -> Tensor", _gate, _fake_gate, _setup, _differentiate_gate)
register(
    "gate_backward(Tensor x, Tensor grad, int lmax) -> Tensor",
    _backward,
    _fake_backward,
    _setup,
    _differentiate_backward,
)
register(
    "gate_second(Tensor x, Tensor grad, Tensor cotangent, int lmax) -> (Tensor, Tensor)",
    _second,
    _fake_second,
    save_nothing,
    no_derivative("gates have derivatives to second order"),
)


def gate(x: Tensor, lmax: int) -> Tensor:
    """Gated features of what a linear map wrote: scalars, gates of each degree, other rows."""
    out: Tensor = torch.ops.e2former_pyg.gate(x, lmax)
    return out
