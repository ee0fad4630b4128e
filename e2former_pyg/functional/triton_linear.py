"""Linear maps of each degree as Triton kernels. The map in both directions and the gradient by the
matrices are operators, whose derivatives are these two again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import is_read
from ..kernels import degree_linear as kernels
from .registration import register


def _precision(x: Tensor, exact: str) -> str:
    if x.dtype != torch.float32 or not x.is_cuda:  # the interpreter knows only one
        return "ieee"
    return "tf32" if torch._C._get_cublas_allow_tf32() else exact


def _map(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    paths: Sequence[int],
    channels: int,
    transposed: bool,
) -> Tensor:
    precision = _precision(x, kernels.exact_products(x.size(0), transposed))
    addend = None if addend is None else addend.contiguous()
    with torch.cuda.device_of(x):
        return kernels.rows(
            x.contiguous(), weight, bias, addend, paths, channels, transposed, precision
        )


def _fake_map(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    paths: Sequence[int],
    channels: int,
    transposed: bool,
) -> Tensor:
    if not transposed:
        return x.new_empty(x.size(0), len(paths) ** 2, weight.size(1))
    num_rows = sum((2 * degree + 1) * count for degree, count in enumerate(paths))
    return x.new_empty(x.size(0), num_rows, channels)


def _setup_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, _, *ctx.settings = inputs
    # Frozen matrices have no use for the input.
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, weight)


def _differentiate_map(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    _, *needed, of_addend, _, _, _ = ctx.needs_input_grad
    gradients = _gradients(ctx, needed, grad, None)
    return *gradients, grad if of_addend else None, None, None, None


def _gradients(
    ctx: Any, needed: Sequence[bool], grad: Tensor, addend: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients by the features, plus an addend, and by matrices and bias."""
    x, weight = ctx.saved_tensors
    paths, channels, transposed = ctx.settings
    grad_x = grad_weight = grad_bias = None
    if needed[0]:
        grad_x = torch.ops.e2former_pyg.degree_linear(
            grad, weight, None, addend, paths, channels, not transposed
        )
    if needed[1] and is_read(ctx, 1):
        pair = (grad, x) if transposed else (x, grad)
        grad_weight = torch.ops.e2former_pyg.degree_linear_weight(*pair, paths, channels)
    if needed[2]:
        grad_bias = grad[:, : paths[0] if transposed else 1].sum(0).flatten()
    return grad_x, grad_weight, grad_bias


def _weight(x: Tensor, grad: Tensor, paths: Sequence[int], channels: int) -> Tensor:
    with torch.cuda.device_of(x):
        precision = _precision(x, "tf32x3")
        return kernels.matrix(x.contiguous(), grad.contiguous(), paths, channels, precision)


def _fake_weight(x: Tensor, grad: Tensor, paths: Sequence[int], channels: int) -> Tensor:
    return x.new_empty(sum(paths) * channels, grad.size(2))


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad, *ctx.settings = inputs
    # Each is needed for the derivative by the other only.
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, grad)


def _differentiate_weight(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    x, grad = ctx.saved_tensors
    linear = torch.ops.e2former_pyg.degree_linear
    grad_x = grad_grad = None
    if ctx.needs_input_grad[1]:
        grad_x = linear(grad, cotangent, None, None, *ctx.settings, True)
    if ctx.needs_input_grad[2]:
        grad_grad = linear(x, cotangent, None, None, *ctx.settings, False)
    return grad_x, grad_grad, None, None


register(
    "degree_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? addend, int[] paths, "
    "int channels, bool transposed) -> Tensor",
    _map,
    _fake_map,
    _setup_map,
    _differentiate_map,
)
register(
    "degree_linear_weight(Tensor x, Tensor grad, int[] paths, int channels) -> Tensor",
    _weight,
    _fake_weight,
    _setup_weight,
    _differentiate_weight,
)


def degree_linear(
    x: Tensor,
    weight: Tensor,
    paths: Sequence[int],
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """As :func:`~e2former_pyg.functional.degree_linear.degree_linear`."""
    channels = weight.size(0) // sum(paths) if transposed else x.size(2)
    out: Tensor = torch.ops.e2former_pyg.degree_linear(
        x, weight, bias, addend, list(paths), channels, transposed
    )
    return out


class _WithInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, paths: list[int]
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings = paths, x.size(2), False
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        out = torch.ops.e2former_pyg.degree_linear(x, weight, bias, None, *ctx.settings)
        return out, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, addend: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return addend, None, None, None
        return *_gradients(ctx, ctx.needs_input_grad, grad, addend), None


def degree_linear_with_input(
    x: Tensor, weight: Tensor, paths: Sequence[int], bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`~e2former_pyg.functional.degree_linear.degree_linear_with_input`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return degree_linear(x, weight, paths, bias), x
    both: tuple[Tensor, Tensor] = _WithInput.apply(x, weight, bias, list(paths))
    return both
