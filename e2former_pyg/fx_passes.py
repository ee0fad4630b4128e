"""Simplification of a graph of ATen operations that runs as it is, one operation after the other.

Features that are recomputed to save memory, index arithmetic, and views of views are of no use
there: dispatching a small operation costs as much as computing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

__all__ = ["simplify"]

aten = torch.ops.aten

_RESHAPES = (aten.view.default, aten._unsafe_view.default)
_TRANSPOSES = (aten.transpose.int, aten.t.default)
# They return their input's values, but for layout, shape or dtype.
_COPIES = (
    *_RESHAPES,
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.expand.default,
)
# fmt: off
_METHODS = (
    "add", "addcmul", "addmm", "baddbmm", "bmm", "clone", "div", "exp", "expand", "index_add",
    "index_select", "mm", "mul", "neg", "permute", "pow", "rsqrt", "select", "sigmoid", "squeeze",
    "sub", "sum", "t", "transpose", "unsqueeze", "view",
)
# fmt: on


def simplify(graph: GraphModule, arguments: Sequence[Any]) -> GraphModule:
    """A graph with the same values, bit for bit, and fewer operations.

    What the graph computes from constants alone is computed now.

    Args:
        graph (torch.fx.GraphModule): A graph made by :func:`make_fx`.
        arguments (list): Inputs like those of later calls, without gradients.
    """
    graph = make_fx(functionalize(graph))(*arguments)
    graph.graph.eliminate_dead_code()
    if not any(_reads_storage(node) for node in graph.graph.nodes):
        _fold_constants(graph)
        _merge_repeated(graph)
        _drop_copies(graph)
        _merge_repeated(graph)
    _call_methods(graph)
    graph.recompile()
    return graph


def _reads_storage(node: Node) -> bool:
    """Whether more than the values of inputs matters: a change in-place that is left is one of a
    tensor that outlives the call.
    """
    return node.target is aten.as_strided.default or (
        isinstance(node.target, OpOverload) and node.target._schema.is_mutable
    )


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _fold_constants(graph: GraphModule) -> None:
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
        elif (
            node.op == "call_function"
            and not _is_random(node)
            and all(argument in values for argument in node.all_input_nodes)
        ):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        needed = any(user not in values for user in node.users)
        if node.op == "get_attr" or not needed or not isinstance(value, Tensor):
            continue
        name = f"_folded_{node.name}"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()


def _merge_repeated(graph: GraphModule) -> None:
    """One node for all that do the same with the same nodes."""
    seen: dict[Any, Node] = {}
    for node in graph.graph.nodes:
        if node.op in ("call_function", "get_attr") and not _is_random(node):
            key = node.target, _key(node.args), _key(node.kwargs)
            first = seen.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
    graph.graph.eliminate_dead_code()


def _key(argument: Any) -> Any:
    """A hashable form of an argument that tells 1, 1.0 and ``True`` apart."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_key, argument))
    if isinstance(argument, dict):
        return tuple((name, _key(value)) for name, value in argument.items())
    return argument if isinstance(argument, Node) else (type(argument), argument)


def _drop_copies(graph: GraphModule) -> None:
    """Lets users of a copy, or of a view like the whole, read the original."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        if node.target in _RESHAPES and source.target in _RESHAPES:
            node.args = (source.args[0], *node.args[1:])
            source = node.all_input_nodes[0]
        elif node.target in _TRANSPOSES and source.target in _TRANSPOSES:
            source = source.all_input_nodes[0]
            if _same_layout(node, source):
                node.replace_all_uses_with(source)
        if (node.target in _COPIES or _times_one(node)) and _same_layout(node, source):
            node.replace_all_uses_with(source)
    graph.graph.eliminate_dead_code()


def _times_one(node: Node) -> bool:
    factor = node.args[1] if node.target is aten.mul.Tensor else None
    return isinstance(factor, (int, float)) and factor == 1


def _same_layout(node: Node, other: Node) -> bool:
    one, two = node.meta["val"], other.meta["val"]
    return (one.dtype, one.device, one.shape, one.stride()) == (
        (two.dtype, two.device, two.shape, two.stride())
    )


def _call_methods(graph: GraphModule) -> None:
    """Calls methods of tensors, which take half the time of calls through the dispatcher's table
    of overloads.
    """
    methods = {
        getattr(getattr(aten, name), overload): getattr(Tensor, name)
        for name in _METHODS
        for overload in getattr(aten, name).overloads()
    }
    methods[aten._unsafe_view.default] = Tensor.view
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.target = methods.get(node.target, node.target)
