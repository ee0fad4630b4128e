"""Launchers: they allocate what a pass writes, all of it node-sized but for the gradient of an
edge bias, and start its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .backward import backward_columns_kernel, backward_rows_kernel
from .forward import forward_kernel
from .normaliser import normaliser_kernel
from .operands import Graph, Operands, Part, Spec, ceil_div
from .spans import spans
from .tangent import tangent_kernel

NONE = Operands(*[None] * len(Operands._fields))

# Programs of one multiprocessor that collect radial gradients: as many as its registers hold, at
# 255 for each lane, so that all run at once and each takes the same share of rows. `_SLAB_BYTES`
# bounds their slabs.
_PROGRAMS = 8
_SLAB_BYTES = 2**26


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _groups(spec: Spec, part: Part) -> int:
    """Programs that share the heads of a row."""
    return ceil_div(spec.heads.value, part.heads.value)


def _launch(
    kernel: Any, programs: int, args: Sequence[Any], spec: Spec, part: Part, *options: bool
) -> None:
    if programs > 0:
        # One warp, so that lanes exchange numbers without waiting for other warps.
        kernel[programs, _groups(spec, part)](*args, spec, part, *options, num_warps=1)


def forward(
    x: Operands, graph: Graph, sink: Tensor | None, spec: Spec, parts: Sequence[Part]
) -> tuple[Tensor, Tensor]:
    """Path rows ``[N_t, P, C]`` and the log-sum-exp ``[N_t, H]`` (of the convolution: empty)."""
    nodes = x.pos_i.size(0)
    out = x.v.new_empty(nodes, spec.output_rows.value, x.v.size(2))
    lse = x.polynomials.new_empty(nodes if spec.attention.value else 0, spec.heads.value)
    for part in parts:
        _launch(forward_kernel, nodes, (x, graph, sink, out, lse), spec, part)
    return out, lse


def _is_whole(spec: Spec, parts: Sequence[Part]) -> bool:
    """Whether a single part writes all results. Others add to what parts before them wrote, and
    what no part writes is zero.
    """
    return len(parts) == 1 and len(parts[0].pairs[0]) == spec.input_rows.value


def _normaliser(
    y: Tensor | None,
    lse: Tensor,
    grad: Tensor,
    sink: Tensor | None,
    spec: Spec,
    parts: Sequence[Part],
) -> tuple[Tensor | None, Tensor | None]:
    """Cotangent of the normaliser of attention, and the gradient of the sink by node. Without path
    rows the former is left to the pass over rows and the latter is :obj:`None`.
    """
    if sink is None:
        return None, None
    if y is None:
        return (torch.empty_like if _is_whole(spec, parts) else torch.zeros_like)(lse), None
    z_bar, sink_bar = torch.empty_like(lse), torch.empty_like(lse)
    _launch(normaliser_kernel, y.size(0), (y, grad, sink, lse, z_bar, sink_bar), spec, parts[0])
    return z_bar, sink_bar


def backward(
    x: Operands,
    graph: Graph,
    transposed: Graph,
    sink: Tensor | None,
    y: Tensor | None,
    lse: Tensor,
    grad: Tensor,
    wanted: Sequence[bool],
    spec: Spec,
    parts: Sequence[Part],
) -> tuple[Operands, Tensor | None]:
    """Gradients of all operands, and of the sink.

    Attention without its path rows ``y`` has those of queries, keys, values and positions alone,
    and no directional term.
    """
    *wanted, of_sink = wanted
    z_bar, sink_bar = _normaliser(y, lse, grad, sink, spec, parts)
    args = x, NONE, graph, transposed, lse, grad, z_bar, None, None, wanted, spec, parts
    out = _passes(*args, find=sink is not None and y is None)
    if sink is None or z_bar is None or not of_sink:
        return out, None
    return out, ((sink - lse).exp() * z_bar if sink_bar is None else sink_bar).sum(0)


def second(
    x: Operands,
    x_dot: Operands,
    graph: Graph,
    transposed: Graph,
    sink: Tensor | None,
    sink_dot: Tensor | None,
    y: Tensor | None,
    lse: Tensor,
    grad: Tensor,
    wanted: Sequence[bool],
    spec: Spec,
    parts: Sequence[Part],
) -> tuple[Tensor, Operands, Tensor | None]:
    """Derivative of the path rows along tangents, and of :func:`backward` along the same: the
    gradients of ``<backward(...), tangents>`` by ``grad`` and by the operands and the sink. Only
    the convolution can do without its path rows ``y``.
    """
    *wanted, of_sink = wanted
    z_bar, _ = _normaliser(y, lse, grad, sink, spec, parts)
    y_dot, z_dot, z_bar_dot = (torch.empty_like(like) for like in (grad, lse, lse))
    for n, part in enumerate(parts):
        args = x, x_dot, graph, sink, sink_dot, lse, y, grad, z_bar, y_dot, z_dot, z_bar_dot
        _launch(tangent_kernel, grad.size(0), args, spec, part, n == 0)
    out = _passes(
        x, x_dot, graph, transposed, lse, grad, z_bar, z_bar_dot, z_dot, wanted, spec, parts
    )
    if sink is None or z_bar is None or not of_sink:
        return y_dot, out, None
    slope = z_bar_dot if sink_dot is None else z_bar_dot + sink_dot * z_bar
    return y_dot, out, ((sink - lse).exp() * slope).sum(0)


def _passes(
    x: Operands,
    x_dot: Operands,
    graph: Graph,
    transposed: Graph,
    lse: Tensor,
    grad: Tensor,
    z_bar: Tensor | None,
    z_bar_dot: Tensor | None,
    z_dot: Tensor | None,
    wanted: Sequence[bool],
    spec: Spec,
    parts: Sequence[Part],
    find: bool = False,
) -> Operands:
    """Both passes over all parts; ``wanted`` says which gradients that cost extra are asked for,
    by the position of the operand, ``find`` that the pass over rows finds ``z_bar``.
    """
    dual = x_dot is not NONE
    want = Operands(*wanted)
    targets, sources, groups = x.pos_i.size(0), x.pos_j.size(0), _groups(spec, parts[0])
    dtype = x.polynomials.dtype
    whole = _is_whole(spec, parts)

    def result(like: Tensor | None, wanted: bool, *shape: int) -> Tensor | None:
        if like is None or not wanted:
            return None
        make: Callable[..., Tensor] = torch.empty if whole else torch.zeros
        return make(shape or like.shape, dtype=dtype, device=like.device)

    shares = None
    if want.polynomials and targets > 0:
        programs = max(_PROGRAMS * _multiprocessors(x.v.device) // groups, 1)
        shares = spans(graph, x.polynomials, targets, programs, _SLAB_BYTES)
    out = Operands(
        result(x.q, True),
        result(x.k, True),
        torch.empty_like(x.v) if whole else torch.zeros_like(x.v, dtype=dtype),
        None if x.u is None or not want.u else torch.zeros_like(x.u),
        None if x.bias is None or not want.bias else torch.zeros_like(x.bias),
        result(x.pos_i, True, targets, groups, 3),
        result(x.pos_j, True, sources, groups, 3),
        result(x.strain, want.strain, targets, groups, 9),
        None if shares is None else shares.slabs,
    )
    # Without radial gradients a program has one row.
    programs, span, firsts, row_graph = (targets, 1, None, graph) if shares is None else shares[:4]
    slab_size = 0 if shares is None else shares.slabs[0].numel()
    args = lse, grad, z_bar, z_bar_dot, z_dot, out
    for n, part in enumerate(parts):
        sizes = targets, span, x.polynomials.size(0), slab_size
        rows = x, x_dot, row_graph, *args, firsts, *sizes
        _launch(backward_rows_kernel, programs, rows, spec, part, dual, n == 0, not whole, find)
    for n, part in enumerate(parts):
        columns = x, x_dot, transposed, *args
        _launch(backward_columns_kernel, sources, columns, spec, part, dual, n == 0, not whole)

    def total(tensor: Tensor | None, like: Tensor | None, axis: int) -> Tensor | None:
        if tensor is None or like is None:
            return None
        total = tensor.sum(axis) if tensor.size(axis) > 1 else tensor
        return total.view(like.shape).to(like.dtype)

    polynomials = None
    if want.polynomials:  # without targets: zero
        like = x.polynomials
        polynomials = torch.zeros_like(like) if shares is None else shares.total(like)
    return out._replace(
        v=out.v.to(x.v.dtype),
        pos_i=total(out.pos_i, x.pos_i, 1),
        pos_j=total(out.pos_j, x.pos_j, 1),
        strain=total(out.strain, x.strain, 1),
        polynomials=polynomials,
    )
