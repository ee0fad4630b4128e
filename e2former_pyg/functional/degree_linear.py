"""Linear maps of the channels of each degree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import has_triton

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.compiler.assume_constant_result
def _multiplies_tf32(device: torch.device) -> bool:
    """Whether a GPU has the products that the kernel is made of."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _takes_kernel(x: Tensor) -> bool:
    return x.is_cuda and has_triton() and _multiplies_tf32(x.device)


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
    if _takes_kernel(x):
        # As autocast does with PyTorch's own products, which leaves float64 alone.
        if torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype("cuda")
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if x.dtype in _DTYPES:
            from .triton_linear import degree_linear as fused

            if addend is None or addend.dtype == x.dtype:
                return fused(x, weight, paths, bias, addend, transposed)
            # Such as a residual connection beside products in half precision.
            return fused(x, weight, paths, bias, None, transposed) + addend
    return degree_linear_torch(x, weight, paths, bias, addend, transposed)


def degree_linear_with_input(
    x: Tensor, weight: Tensor, paths: Sequence[int], bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`degree_linear` and its input, for another map of it: on a GPU the kernel sums the
    gradients of both, without another pass over the features.
    """
    if _takes_kernel(x) and x.dtype in _DTYPES and not torch.is_autocast_enabled("cuda"):
        from .triton_linear import degree_linear_with_input as fused

        return fused(x, weight, paths, bias)
    return degree_linear(x, weight, paths, bias), x


def lower_degree_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None
) -> Tensor:
    """Maps the rows of the degrees that have a matrix in ``weight``, ``[L + 1, C_in, C_out]``; rows
    of higher ones are not read.
    """
    lower = (1,) * len(weight)
    if not _takes_kernel(x):
        return degree_linear(x[:, : len(weight) ** 2], weight.flatten(0, 1), lower, bias, addend)
    # Transposed, the map can have degrees without paths: nothing is sliced, no gradient padded.
    without = (0,) * (math.isqrt(x.size(1)) - len(weight))
    weight = weight.transpose(1, 2).flatten(0, 1)
    return degree_linear(x, weight, lower + without, bias, addend, transposed=True)


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
    """The same in PyTorch. Rows come first in memory, so that no product needs a copy."""
    channels = x.size(2)
    if transposed:
        out = _transposed(x, weight, paths)
        if bias is not None:
            bias = bias.view(paths[0], -1)
            out = out + torch.nn.functional.pad(bias, (0, 0, 0, out.size(1) - paths[0]))
    elif all(count == 1 for count in paths):
        # One product for all rows: repeating matrices costs less than a call for each degree.
        matrices = weight.view(len(paths), channels, -1)
        weight = torch.cat([w.expand(2 * n + 1, -1, -1) for n, w in enumerate(matrices)])
        x = x.transpose(0, 1)
        if bias is not None:
            bias = torch.nn.functional.pad(bias.view(1, 1, -1), (0, 0, 0, 0, 0, x.size(0) - 1))
            out = torch.baddbmm(bias, x, weight)
        # Autocast would round what is added as well.
        elif addend is not None and not torch.is_autocast_enabled(x.device.type):
            return torch.baddbmm(addend.transpose(0, 1), x, weight).transpose(0, 1)
        else:
            out = torch.bmm(x, weight)
        out = out.transpose(0, 1)
    else:
        sizes = [(2 * degree + 1) * count for degree, count in enumerate(paths)]
        matrices = weight.split([count * channels for count in paths])
        parts = []
        for degree, part in enumerate(x.split(sizes, dim=1)):
            size = 2 * degree + 1
            part = part.unflatten(1, (size, paths[degree])).flatten(2).transpose(0, 1)
            parts.append(torch.bmm(part, matrices[degree].expand(size, -1, -1)))
        out = torch.cat(parts, dim=0).transpose(0, 1)
        if bias is not None:
            out = add_to_scalars(out, bias)
    return out if addend is None else out + addend


def _transposed(x: Tensor, weight: Tensor, paths: Sequence[int]) -> Tensor:
    channels = weight.size(0) // sum(paths)
    matrices = weight.split([count * channels for count in paths])
    rows = x.split([2 * degree + 1 for degree in range(len(paths))], dim=1)
    parts = (
        (row @ matrix.t()).unflatten(2, (count, channels)).flatten(1, 2)
        for row, matrix, count in zip(rows, matrices, paths, strict=True)
    )
    return torch.cat(tuple(parts), dim=1)


def add_to_scalars(x: Tensor, bias: Tensor) -> Tensor:
    """Adds ``bias``, ``[C]`` or ``[N, C]``, to degree 0 of ``x [N, M, C]``."""
    return x + torch.nn.functional.pad(bias.unsqueeze(-2), (0, 0, 0, x.size(1) - 1))
