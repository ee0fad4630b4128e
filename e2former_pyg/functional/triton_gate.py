"""Gates as Triton kernels, differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import gate as kernels
from .registration import no_derivative, register, save_nothing


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _gate(x: Tensor, gates: Tensor) -> Tensor:
    with torch.cuda.device_of(x):
        return kernels.gate(*_contiguous(x, gates))


def _fake_gate(x: Tensor, gates: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_gate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = torch.ops.e2former_pyg.gate_backward(*ctx.saved_tensors, grad)
    return out


def _backward(x: Tensor, gates: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.backward(*_contiguous(x, gates, grad))


def _fake_backward(x: Tensor, gates: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), gates.new_empty(gates.shape)


def _differentiate_backward(
    ctx: Any, cotangent_x: Tensor, cotangent_gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.e2former_pyg.gate_second(
        *ctx.saved_tensors, cotangent_x, cotangent_gates
    )
    return out


def _second(
    x: Tensor, gates: Tensor, grad: Tensor, cotangent_x: Tensor, cotangent_gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return kernels.second(*_contiguous(x, gates, grad, cotangent_x, cotangent_gates))


def _fake_second(
    x: Tensor, gates: Tensor, grad: Tensor, cotangent_x: Tensor, cotangent_gates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gates.new_empty(gates.shape), grad.new_empty(grad.shape)


register("gate(Tensor x, Tensor gates) -> Tensor", _gate, _fake_gate, _setup, _differentiate_gate)
register(
    "gate_backward(Tensor x, Tensor gates, Tensor grad) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
    _setup,
    _differentiate_backward,
)
register(
    "gate_second(Tensor x, Tensor gates, Tensor grad, Tensor cotangent_x, Tensor cotangent_gates)"
    " -> (Tensor, Tensor, Tensor)",
    _second,
    _fake_second,
    save_nothing,
    no_derivative("gates have derivatives to second order"),
)


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """As :func:`~e2former_pyg.functional.gate.gate`."""
    out: Tensor = torch.ops.e2former_pyg.gate(x, gates)
    return out
