"""The operations as fused Triton kernels, registered as operators that compilers see as one node.

Three operators serve attention and convolution: path rows, their gradients, and the derivative of
both along tangents, which is the backward of the second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..engine import is_read
from ..graph import CSRNeighborhood
from ..kernels import launch
from ..kernels.operands import Graph, Operands, Part, Spec, constants
from ..radial import RadialSplines
from .paths import Coupling, coupling
from .registration import no_derivative, register, save_nothing
from .triton_polynomials import cell_polynomials
from .triton_tables import DTYPES, harmonic_terms, parts

_OPERANDS = (
    "Tensor? q, Tensor? k, Tensor v, Tensor? u, Tensor? bias, Tensor pos_i, Tensor pos_j, "
    "Tensor? strain, Tensor polynomials, Tensor? sink"
)
_REST = (
    "Tensor rowptr, Tensor col, Tensor? edge, Tensor? order, "
    "Tensor? rowptr_t, Tensor? col_t, Tensor? edge_t, Tensor? order_t, "
    "Tensor type_i, Tensor type_j, Tensor? shift, Tensor? seed, int lmax_in, int lmax_out, "
    "int[] orders, str parity, float cutoff, float dropout"
)
_NAMES = (*Operands._fields, "sink")
_NUM_OPERANDS = len(_NAMES)
_TANGENTS = ", ".join(f"Tensor? {name}_dot" for name in _NAMES)
_NUM_SAVED = 12  # tensors of `_REST`
# Operands whose gradients are left out where nobody reads them.
_OPTIONAL = frozenset({"u", "bias", "strain", "polynomials", "sink"})
# Those of them whose gradients need the path rows of attention.
_OF_ROWS = tuple(map(_NAMES.index, ("bias", "strain", "polynomials")))

# Nodes from which on the features no longer stay in the cache, so that the order of rows matters.
_LARGE = 4096


class _Problem:
    """The arguments of an operator, grouped as the kernels take them."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        *operands, self.sink = arguments[:_NUM_OPERANDS]
        self.x = Operands(*operands)
        rest = arguments[_NUM_OPERANDS:]
        shared = *rest[8:10], self.x.polynomials.size(1), *rest[10:_NUM_SAVED]
        self.graph = Graph(*rest[:4], *shared)
        self.transposed = Graph(*rest[4:8], *shared)
        self.spec, self.parts = _specialise(self.x, *rest[_NUM_SAVED:])


def _specialise(
    x: Operands,
    lmax_in: int,
    lmax_out: int,
    orders: Sequence[int],
    parity: str,
    cutoff: float,
    dropout: float,
) -> tuple[Spec, tuple[Part, ...]]:
    _, _, cells, heads, functions, _ = x.polynomials.shape
    return _compiled_for(
        *(lmax_in, lmax_out, tuple(orders), parity, x.q is not None, heads),
        *(x.v.size(2) // heads, 0 if x.u is None else x.u.size(1)),
        *(0 if x.q is None else x.q.size(2), functions, cutoff, cells, dropout),
        x.polynomials.dtype,
    )


@cache
def _compiled_for(
    lmax_in: int,
    lmax_out: int,
    orders: tuple[int, ...],
    parity: str,
    attention: bool,
    heads: int,
    channels: int,
    u_rows: int,
    d: int,
    functions: int,
    cutoff: float,
    cells: int,
    dropout: float,
    dtype: torch.dtype,
) -> tuple[Spec, tuple[Part, ...]]:
    paths = coupling(lmax_in, lmax_out, orders, parity)
    lmax = max(*orders, math.isqrt(max(u_rows, 1)) - 1)
    spec = Spec(
        *(attention, heads, channels, paths.num_inputs, u_rows, paths.num_rows, d, functions),
        *(cutoff, cells, dropout, (lmax + 1) ** 2, harmonic_terms(lmax), DTYPES[dtype]),
    )
    shape = heads, channels, d, functions
    split = parts(paths, *shape, wide=dtype == torch.float64)
    return constants(spec), tuple(constants(part) for part in split)


def _present(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Operators return tensors only: an empty one stands for none."""
    return like.new_empty(0) if tensor is None else tensor


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem = _Problem(arguments[:-1])
    with torch.cuda.device_of(problem.x.v):
        return launch.forward(problem.x, problem.graph, problem.sink, problem.spec, problem.parts)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, y, lse, grad, wanted = arguments
    problem = _Problem(inputs)
    with torch.cuda.device_of(lse):
        grads, sink = launch.backward(
            problem.x,
            problem.graph,
            problem.transposed,
            problem.sink,
            y,
            lse,
            grad.contiguous(),
            wanted,
            problem.spec,
            problem.parts,
        )
    return tuple(_present(tensor, lse) for tensor in (*grads, sink))


def _second(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, wanted = arguments
    inputs, tangents = inputs[:-_NUM_OPERANDS], inputs[-_NUM_OPERANDS:]
    *inputs, y, lse, grad = inputs
    problem = _Problem(inputs)
    *dots, sink_dot = (None if dot is None else dot.contiguous() for dot in tangents)
    with torch.cuda.device_of(lse):
        y_dot, grads, sink = launch.second(
            problem.x,
            Operands(*dots),
            problem.graph,
            problem.transposed,
            problem.sink,
            sink_dot,
            y,
            lse,
            grad.contiguous(),
            wanted,
            problem.spec,
            problem.parts,
        )
    return tuple(_present(tensor, lse) for tensor in (y_dot, *grads, sink))


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    _, _, v, _, _, pos_i, _, _, polynomials, sink = arguments[:_NUM_OPERANDS]
    lmax_in, lmax_out, orders, parity = arguments[-7:-3]
    rows = coupling(lmax_in, lmax_out, tuple(orders), parity).num_rows
    nodes = pos_i.size(0)
    lse = polynomials.new_empty(0 if sink is None else nodes, polynomials.size(3))
    return v.new_empty(nodes, rows, v.size(2)), lse


def _fake_gradients(operands: Sequence[Any], lse: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    return [
        lse.new_empty(0)
        if tensor is None or (name in _OPTIONAL and not wanted[n])
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for n, (name, tensor) in enumerate(zip(_NAMES, operands, strict=True))
    ]


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *_, lse, _, wanted = arguments
    return tuple(_fake_gradients(arguments[:_NUM_OPERANDS], lse, wanted))


def _fake_second(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, wanted = arguments
    _, lse, grad = inputs[-_NUM_OPERANDS - 3 : -_NUM_OPERANDS]
    return (
        torch.empty_like(grad, memory_format=torch.contiguous_format),
        *_fake_gradients(arguments[:_NUM_OPERANDS], lse, wanted),
    )


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *ctx.settings, keep = inputs[_NUM_OPERANDS + _NUM_SAVED :]
    y, lse = output
    # Convolutions have no use for their rows.
    saved = y if keep and _is_attention(inputs) else None
    ctx.save_for_backward(*inputs[: _NUM_OPERANDS + _NUM_SAVED], saved, lse)
    ctx.set_materialize_grads(False)


def _differentiate_forward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *inputs, y, lse = ctx.saved_tensors
    if grad is None:
        return (None,) * (len(inputs) + len(ctx.settings) + 1)
    wanted = _wanted(ctx, inputs)
    if y is None and _is_attention(inputs) and _needs_rows(inputs, wanted):
        y = _again(inputs, ctx.settings)
    grads = torch.ops.e2former_pyg.path_rows_backward(
        *inputs, *ctx.settings, None if y is None else y.detach(), lse.detach(), grad, wanted
    )
    return _gradients(grads, inputs) + (None,) * (_NUM_SAVED + len(ctx.settings) + 1)


def _is_attention(operands: Sequence[Any]) -> bool:
    return operands[_NAMES.index("sink")] is not None


def _needs_rows(operands: Sequence[Tensor | None], wanted: Sequence[bool]) -> bool:
    """Whether the backward of attention needs the path rows for the gradients that are wanted."""
    directional = operands[_NAMES.index("u")] is not None
    return directional or any(wanted[n] for n in _OF_ROWS)


@torch.no_grad()
def _again(inputs: Sequence[Any], settings: Sequence[Any]) -> Tensor:
    """The path rows once more."""
    y: Tensor = torch.ops.e2former_pyg.path_rows(*inputs, *settings, True)[0]
    return y


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *rest, y, lse, grad, _ = inputs
    ctx.save_for_backward(*rest[: _NUM_OPERANDS + _NUM_SAVED], y, lse, grad)
    ctx.settings = rest[_NUM_OPERANDS + _NUM_SAVED :]
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
    *inputs, y, lse, grad = ctx.saved_tensors
    if y is None and _is_attention(inputs):
        y = _again(inputs, ctx.settings)
    wanted = _wanted(ctx, inputs)
    # What stands for no gradient is empty, and so is its cotangent.
    present = [
        dot if tensor is not None and dot is not None and dot.shape == tensor.shape else None
        for dot, tensor in zip(tangents, inputs, strict=False)
    ]
    grad_grad, *grads = torch.ops.e2former_pyg.path_rows_second(
        *inputs, *ctx.settings, y, lse, grad, *present, wanted
    )
    rest = (None,) * (_NUM_SAVED + len(ctx.settings) + 2)  # and y, lse: functions of the operands
    return (*_gradients(grads, inputs), *rest, grad_grad, None)


def _wanted(ctx: Any, inputs: Sequence[Tensor | None]) -> list[bool]:
    """For each operand whether its gradient is asked for, and of :data:`_OPTIONAL` ones whether
    somebody reads it: forces alone need none of weights.
    """
    tensors = itertools.accumulate((tensor is not None for tensor in inputs), initial=0)
    return [
        tensor is not None
        and bool(ctx.needs_input_grad[n + 1])
        and (name not in _OPTIONAL or is_read(ctx, position))
        for n, (name, tensor, position) in enumerate(zip(_NAMES, inputs, tensors, strict=False))
    ]


def _gradients(
    grads: Sequence[Tensor], inputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    return tuple(
        None if tensor is None or grad.shape != tensor.shape else grad
        for grad, tensor in zip(grads, inputs, strict=False)
    )


register(
    f"path_rows({_OPERANDS}, {_REST}, bool keep) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _setup_forward,
    _differentiate_forward,
)
register(
    f"path_rows_backward({_OPERANDS}, {_REST}, Tensor? y, Tensor lse, Tensor grad, bool[] wanted)"
    " -> (" + ", ".join(["Tensor"] * _NUM_OPERANDS) + ")",
    _backward,
    _fake_backward,
    _setup_backward,
    _differentiate_backward,
)
register(
    f"path_rows_second({_OPERANDS}, {_REST}, Tensor? y, Tensor lse, Tensor grad, {_TANGENTS}, "
    "bool[] wanted) -> (" + ", ".join(["Tensor"] * (_NUM_OPERANDS + 1)) + ")",
    _second,
    _fake_second,
    save_nothing,
    no_derivative(
        "the Triton backend has derivatives to second order; use backend='torch' for higher ones"
    ),
)


# An exported program has one route for all sizes. Older versions of torch can not tell.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def _is_large(neighborhood: CSRNeighborhood) -> bool:
    return max(neighborhood.num_targets, neighborhood.num_sources) >= _LARGE


def path_rows(
    paths: Coupling,
    neighborhood: CSRNeighborhood,
    radial: RadialSplines,
    *,
    v: Tensor,
    pos: tuple[Tensor, Tensor],
    heads: int,
    q: Tensor | None = None,
    k: Tensor | None = None,
    sink: Tensor | None = None,
    u: Tensor | None = None,
    edge_shift: Tensor | None = None,
    strain: Tensor | None = None,
    edge_bias: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    parity: str,
    keep_rows: bool = True,
) -> Tensor:
    """Path rows of attention or, without queries, of convolution; ``strain`` is that of each
    target. Unless attention is to keep them, backward does without them where it can and computes
    them again for many nodes.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)

    def prepared(tensor: Tensor | None, dtype: torch.dtype | None = dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype).contiguous()

    operands = (
        *(prepared(q), prepared(k), v.contiguous(), prepared(u), prepared(edge_bias)),
        *(pos[1].contiguous(), pos[0].contiguous(), prepared(strain, None)),
        *(cell_polynomials(radial.coefficients, heads, dtype), prepared(sink)),
    )
    # Edges are told apart only for what the caller gave by edge.
    by_edge = edge_shift is not None or edge_bias is not None or dropout > 0
    edge = neighborhood.perm if by_edge else None
    large = v.is_cuda and not _is_exporting() and _is_large(neighborhood)
    order = neighborhood.order(pos[1]) if large else None
    rowptr_t = col_t = edge_t = order_t = None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        transposed = neighborhood.transpose()
        rowptr_t, col_t = transposed.rowptr, transposed.col
        order_t = transposed.order(pos[0]) if large else None
        if by_edge:
            edge_t = transposed.perm if edge is None else edge[transposed.perm]
    learned = [t is not None and t.requires_grad for t in operands]
    keep = keep_rows or _is_exporting()
    if _needs_rows(operands, learned):
        keep = keep or not _is_large(neighborhood)
    rows, _ = torch.ops.e2former_pyg.path_rows(
        *operands,
        *(neighborhood.rowptr, neighborhood.col, edge, order),
        *(rowptr_t, col_t, edge_t, order_t),
        *(radial.target_type.long(), radial.source_type.long()),  # offsets are made of them
        prepared(edge_shift, pos[1].dtype),
        seed if dropout > 0 else None,
        *(paths.lmax_in, paths.lmax_out, paths.orders, parity, radial.cutoff, dropout),
        keep,
    )
    return rows
