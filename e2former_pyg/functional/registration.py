"""Registration of operators whose derivatives are operators too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

LIBRARY = torch.library.Library("e2former_pyg", "DEF")


def register(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None],
    differentiate: Callable[..., Any],
) -> None:
    """What :func:`torch.library.register_autograd` does, without its bookkeeping for defaults:
    that takes time quadratic in the number of arguments, half a millisecond for the attention.

    Args:
        schema (str): Name, arguments and results.
        function: The implementation.
        fake: The shapes of its results.
        setup: As ``setup_context`` of an autograd function.
        differentiate: As its ``backward``.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"e2former_pyg::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.e2former_pyg, name).default

    def below_autograd(keys: Any, arguments: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx: Any, keys: Any, *arguments: Any) -> Any:
        output = below_autograd(keys, arguments)
        setup(ctx, arguments, output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        return (None, *differentiate(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    node: Any = type(f"{name}_autograd", (torch.autograd.Function,), methods)

    def dispatch(keys: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return node.apply(keys, *arguments)
        return below_autograd(keys, arguments)

    LIBRARY.impl(name, dispatch, "Autograd", with_keyset=True)


def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The ``setup`` of operators without derivatives."""


def no_derivative(message: str) -> Callable[..., None]:
    """The ``differentiate`` of operators without derivatives."""

    def differentiate(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(message)

    return differentiate
