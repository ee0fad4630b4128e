"""Runs the kernels, interpreted where there is no GPU, beside their PyTorch twin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from e2former_pyg.graph import CSRNeighborhood

_LEVELS = {"value": 0, "d": 1, "dd": 2}


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote is NaN, so that it shows up in results."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def cast(case: Any, features: torch.dtype, rest: torch.dtype) -> Any:
    """Queries, keys and values in one dtype, other inputs in another."""
    case = case.map(lambda tensor: tensor.to(rest))
    names = [name for name in ("q", "k", "v") if getattr(case, name) is not None]
    return case.replace(**{name: getattr(case, name).to(features) for name in names})


def on(device: str, case: Any) -> Any:
    """The case on a device, indices too."""
    changes = {}
    for field in fields(case):
        value = getattr(case, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.to(device)
        elif isinstance(value, tuple) and isinstance(value[0], Tensor):
            changes[field.name] = tuple(part.to(device) for part in value)
    return case.replace(**changes)


def without_edges(case: Any) -> Any:
    changes = {"edge_index": case.edge_index[:, :0]}
    for name in ("edge_shift", "edge_bias"):
        if getattr(case, name) is not None:
            changes[name] = getattr(case, name)[:0]
    return case.replace(**changes)


def derivatives(
    case: Any,
    backend: str,
    *,
    order: int = 2,
    by: tuple[str, ...] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """The value, its first derivatives by the inputs ``by``, the derivatives of a random
    combination of these by the cotangent and all inputs. Offsets of edges are constants.
    """
    shift = case.edge_shift
    case, inputs = case.replace(edge_shift=None).leaves()
    case = case.replace(edge_shift=shift)
    generator = torch.Generator().manual_seed(3)

    def random(like: Tensor) -> Tensor:
        # Eight bits: the same numbers in every dtype.
        values = torch.randn(like.shape, dtype=torch.float64, generator=generator)
        return layout(values.bfloat16().to(like))

    names = list(by or inputs)
    with poisoned():
        out = case.run(backend=backend, **kwargs)
        results = {"value": out}
        if order > 0:
            weight = random(out).requires_grad_()
            wanted = [inputs[name] for name in names]
            first = torch.autograd.grad(
                out, wanted, weight, create_graph=order > 1, materialize_grads=True
            )
            results |= {f"d {name}": g for name, g in zip(names, first, strict=True)}
        if order > 1:
            total = sum((grad * random(grad)).sum() for grad in first)
            second = torch.autograd.grad(total, [weight, *inputs.values()], materialize_grads=True)
            names = ["weight", *inputs]
            results |= {f"dd {name}": g for name, g in zip(names, second, strict=True)}
    return results


def differences(
    found: dict[str, Tensor], expected: dict[str, Tensor], *limits: float
) -> dict[str, float]:
    """Relative errors in the 2-norm above the limits for values, first and second derivatives."""
    assert found.keys() == expected.keys()
    above = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        limit = limits[min(_LEVELS[name.split()[0]], len(limits) - 1)]
        wanted, got = value.detach().double(), found[name].detach().double()
        error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-300))
        if not error < limit:
            above[name] = error
    return above


def compiled_errors(
    reference: Any, function: Callable[..., Tensor], cases: list[Any], **kwargs: Any
) -> Iterator[float]:
    """Errors of values and derivatives of ``function``, compiled once for all cases."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, **kwargs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for case in cases:
            case, inputs = case.leaves()
            graph = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
            arguments = (
                *(case.q, case.k, case.v, case.pos, graph.rowptr, graph.col),
                *(case.coefficients, case.target_type, case.sink),
            )
            found, expected = compiled(*arguments), function(*arguments)
            leaves = list(inputs.values())
            yield reference.error(found, expected)
            yield from map(
                reference.error,
                torch.autograd.grad(found.square().sum(), leaves),
                torch.autograd.grad(expected.square().sum(), leaves),
            )


def exported_error(function: Callable[..., Tensor], cases: list[Any]) -> float:
    """How far ``function``, exported with free sizes from the first case, is from itself on all."""

    class Module(torch.nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            return function(*arguments)

    nodes, edges = (torch.export.Dim(name, min=2) for name in ("nodes", "edges"))
    sizes = [{0: nodes}] * 4 + [{0: nodes + 1}, {0: edges}, None, {0: nodes}, None]
    calls = []
    for case in cases:
        graph = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
        inputs = (case.q, case.k, case.v, case.pos, graph.rowptr, graph.col)
        calls.append((*inputs, case.coefficients, case.target_type, case.sink))
    program = torch.export.export(Module(), calls[0], dynamic_shapes=(tuple(sizes),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "e2former_pyg.path_rows.default" in targets
    return max(float((program.module()(*c) - function(*c)).abs().max()) for c in calls)


@pytest.fixture(scope="session")
def twin() -> SimpleNamespace:
    """The functions above."""
    functions = (
        *(cast, on, without_edges, derivatives, differences),
        *(compiled_errors, exported_error),
    )
    return SimpleNamespace(**{function.__name__: function for function in functions})
