"""Repeated evaluations of a potential on the CPU as one list of operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..checks import values_known
from ..fx_passes import simplify
from .graphs import GraphInput
from .potential import E2FormerPotential, PotentialOutput

# Calls with the same atoms and edges after which tracing, which takes seconds, is likely to pay.
TRACE_AFTER = 200
# Edges up to which Python and autograd take a good part of the time. A trace also keeps what layers
# compute in parts to save memory.
MAX_TRACED_EDGES = 4096

# What may differ from call to call; the rest becomes part of the trace.
_MOVING = ("pos", "cell", "edge_shift")


class RepeatedEvaluation:
    """Evaluates a potential, and from the time on when the same atoms and edges have come often
    enough runs a trace of it, which gives the same numbers.

    Args:
        potential (E2FormerPotential): The potential, with weights that stay as they are.
    """

    def __init__(self, potential: E2FormerPotential) -> None:
        self.potential = potential
        self.reset()

    def reset(self) -> None:
        """Forgets what has come so far."""
        self._known: tuple[object, ...] = ()
        self._calls = 0
        self._trace: Callable[[dict[str, Tensor]], list[Tensor]] | None = None

    def __getstate__(self) -> dict[str, object]:
        # A trace cannot be pickled; copies make their own.
        return {**self.__dict__, "_known": (), "_calls": 0, "_trace": None}

    def __call__(self, inputs: GraphInput) -> PotentialOutput:
        """Evaluates inputs whose edges are sorted by target, on the CPU."""
        assert inputs.edge_index is not None
        traceable = values_known(inputs.pos) and not torch.is_autocast_enabled("cpu")
        if not traceable or inputs.edge_index.size(1) > MAX_TRACED_EDGES:
            return self.potential._evaluate(inputs, differentiable=False)
        known = self._describe(inputs)
        if not _same(known, self._known):
            self.reset()
            self._known = tuple(v.clone() if isinstance(v, Tensor) else v for v in known)
        self._calls += 1
        if self._calls <= TRACE_AFTER:
            return self.potential._evaluate(inputs, differentiable=False)
        moving = {name: getattr(inputs, name) for name in _MOVING}
        moving = {name: value for name, value in moving.items() if value is not None}
        if self._trace is None:
            self._trace = self._make(inputs, moving)
        # Constants, and memory that two of them share, are not for callers to change.
        found = iter([value.clone() for value in self._trace(moving)])
        present = (True, True, self.potential.forces is not None, self.potential.stress)
        return PotentialOutput._make(next(found) if has else None for has in present)

    def _describe(self, inputs: GraphInput) -> tuple[object, ...]:
        """What a trace is good for: kinds of what moves, and all of the rest."""
        moving = [getattr(inputs, name) for name in _MOVING]
        kinds = [None if value is None else (value.shape, value.dtype) for value in moving]
        edges = inputs.edge_index.as_tensor()  # type: ignore[union-attr]
        rest = [
            edges if name == "edge_index" else value
            for name, value in inputs._asdict().items()
            if name not in _MOVING
        ]
        return (*kinds, *rest, self.potential.stress, self.potential.forces)

    def _make(
        self, inputs: GraphInput, moving: dict[str, Tensor]
    ) -> Callable[[dict[str, Tensor]], list[Tensor]]:
        def evaluate(moving: dict[str, Tensor]) -> list[Tensor]:
            own: GraphInput = inputs._replace(**moving)  # type: ignore[arg-type]
            out = self.potential._evaluate(own, differentiable=False)
            return [value for value in out if value is not None]

        evaluate(moving)  # what is derived from these edges is then known
        return simplify(make_fx(evaluate)(moving), (moving,))


def _same(known: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(known) == len(other) and all(map(_equal, known, other))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
