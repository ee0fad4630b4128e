"""Linear maps of the channels of each degree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from ..engine import is_read
from ..precision import autograd_without_autocast
from .backends import has_triton

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.compiler.assume_constant_result
def _multiplies_tf32(device: torch.device) -> bool:
    """Whether a GPU has the products that the kernel is made of."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def degree_linear(
    x: Tensor,
    weight: Tensor,
    paths: Sequence[int],
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    r"""Maps the channels of the rows of each degree by a matrix of its own,

    .. math::
        x'_{i, \ell m} = [x_{i, \ell m 1}, \ldots, x_{i, \ell m P_\ell}]\, W_\ell
        + \delta_{\ell 0}\, b + a_{i, \ell m},

    where a row of degree :math:`\ell` has :math:`P_\ell` paths side by side. Transposed, it is the
    output that has paths, :math:`[x'_{i, \ell m 1}, \ldots, x'_{i, \ell m P_\ell}] = x_{i, \ell m}
    W_\ell^{\top} + \delta_{\ell 0}\, b`.

    CUDA tensors of type float32, bfloat16 and float16 take a Triton kernel, also in layers whose
    operation takes another backend. It is as exact as float32 allows, unless PyTorch was told to
    use TF32 for matrix products.

    Args:
        x (torch.Tensor): The features.
        weight (torch.Tensor): The matrices of all degrees below one another.
        paths (sequence): The number :math:`P_\ell` of paths of each degree.
        bias (torch.Tensor, optional): Added to degree 0. (default: :obj:`None`)
        addend (torch.Tensor, optional): Added to all rows. (default: :obj:`None`)
        transposed (bool, optional): The direction. (default: :obj:`False`)

    Shapes:
        - **x:** :math:`(N, \sum_\ell (2\ell+1) P_\ell, C_\mathrm{in})`
        - **weight:** :math:`(\sum_\ell P_\ell C_\mathrm{in}, C_\mathrm{out})`
        - **bias:** :math:`(C_\mathrm{out})`; transposed :math:`(P_0 C_\mathrm{in})`
        - **addend, output:** :math:`(N, (l_{\max}+1)^2, C_\mathrm{out})`; transposed, the shape of
          **x**, which has theirs
    """
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        # As with PyTorch's own products, float64 is left alone.
        dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if addend is not None and addend.dtype != x.dtype:
        # Such as a residual connection beside products in half precision.
        return degree_linear(x, weight, paths, bias, None, transposed) + addend
    if x.is_cuda and has_triton() and x.dtype in _DTYPES and _multiplies_tf32(x.device):
        from .triton_linear import degree_linear as fused

        return fused(x, weight, paths, bias, addend, transposed)
    return degree_linear_torch(x, weight, paths, bias, addend, transposed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear` of scalars, on a GPU by the kernel of the other maps:
    PyTorch's own products in float32 take no tensor cores.
    """
    if x.is_cuda:
        return degree_linear(x.unsqueeze(1), weight, (1,), bias, transposed=True).squeeze(1)
    return torch.nn.functional.linear(x, weight, bias)


def degree_linear_torch(
    x: Tensor,
    weight: Tensor,
    paths: Sequence[int],
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """The same in PyTorch."""
    if not transposed and all(count == 1 for count in paths):
        # One product for all rows: repeating matrices costs less than a call for each degree.
        # Rows come first in memory, so that it needs no copy.
        matrices = weight.view(len(paths), x.size(2), -1)
        weight = torch.cat([w.expand(2 * n + 1, -1, -1) for n, w in enumerate(matrices)])
        x = x.transpose(0, 1)
        if bias is not None:
            bias = torch.nn.functional.pad(bias.view(1, 1, -1), (0, 0, 0, 0, 0, x.size(0) - 1))
            out = torch.baddbmm(bias, x, weight)
        elif addend is not None:
            return torch.baddbmm(addend.transpose(0, 1), x, weight).transpose(0, 1)
        else:
            out = torch.bmm(x, weight)
        out = out.transpose(0, 1)
        return out if addend is None else out + addend
    out = _Products.apply(x, weight, tuple(paths), transposed)
    if bias is not None:
        rows = paths[0] if transposed else 1
        bias = torch.nn.functional.pad(bias.view(rows, -1), (0, 0, 0, out.size(1) - rows))
        out = out + bias
    return out if addend is None else out + addend


def _features_by_degree(x: Tensor, paths: Sequence[int]) -> tuple[Tensor, ...]:
    """``[2 l + 1, N, C]`` of each degree."""
    return x.transpose(0, 1).split([2 * degree + 1 for degree in range(len(paths))])


def _rows_by_degree(x: Tensor, paths: Sequence[int]) -> list[Tensor]:
    """``[2 l + 1, N, P_l C]`` of each degree, without a copy where the rows of a node are."""
    sizes = [(2 * degree + 1) * count for degree, count in enumerate(paths)]
    return [
        part.unflatten(1, (2 * degree + 1, count)).flatten(2).transpose(0, 1)
        for degree, (part, count) in enumerate(zip(x.split(sizes, dim=1), paths, strict=True))
    ]


@autograd_without_autocast
class _Products(torch.autograd.Function):
    """``x W`` or, transposed, ``x W^T`` of each degree.

    Each is the other's derivative. Autograd's own copies path rows twice.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, paths: tuple[int, ...], transposed: bool
    ) -> Tensor:
        ctx.paths, ctx.transposed = paths, transposed
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        channels = weight.size(0) // sum(paths)
        matrices = weight.split([count * channels for count in paths])
        parts = _features_by_degree(x, paths) if transposed else _rows_by_degree(x, paths)
        products = [
            torch.bmm(part, (w.t() if transposed else w).expand(part.size(0), -1, -1))
            for part, w in zip(parts, matrices, strict=True)
        ]
        if not transposed:
            return torch.cat(products).transpose(0, 1)
        rows = [row for product in products for row in product.unbind(0)]
        return torch.cat(rows, dim=1).unflatten(1, (-1, channels))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _Products.apply(grad, weight, ctx.paths, not ctx.transposed)
        if ctx.needs_input_grad[1] and is_read(ctx, 1):
            rows, features = (grad, x) if ctx.transposed else (x, grad)
            grad_weight = _MatrixProducts.apply(rows, features, ctx.paths)
        return grad_x, grad_weight, None, None


@autograd_without_autocast
class _MatrixProducts(torch.autograd.Function):
    """``rows^T features`` of each degree, the gradient by its matrix."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, features: Tensor, paths: tuple[int, ...]) -> Tensor:
        ctx.paths = paths
        ctx.save_for_backward(rows, features)
        parts = zip(_rows_by_degree(rows, paths), _features_by_degree(features, paths), strict=True)
        return torch.cat([torch.bmm(r.transpose(1, 2), f).sum(0) for r, f in parts])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, features = ctx.saved_tensors
        grad_rows = grad_features = None
        if ctx.needs_input_grad[0]:
            grad_rows = _Products.apply(features, grad, ctx.paths, True)
        if ctx.needs_input_grad[1]:
            grad_features = _Products.apply(rows, grad, ctx.paths, False)
        return grad_rows, grad_features, None


def add_to_scalars(x: Tensor, bias: Tensor) -> Tensor:
    """Adds ``bias``, ``[C]`` or ``[N, C]``, to degree 0 of ``x [N, M, C]``."""
    return x + torch.nn.functional.pad(bias.unsqueeze(-2), (0, 0, 0, x.size(1) - 1))
