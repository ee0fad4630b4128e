"""The passes that are timed, and how far their results are from float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from attention_problems import Contender, Problem
from torch import Tensor

# The largest relative errors allowed, by the order of the derivative. Features in bfloat16 are
# held to the last number.
BARS = (2e-6, 1e-5, 1e-4)
BFLOAT16_BAR = 1e-2
# At full size positions reach further than 20 Å from the origin, where float32 places atoms less
# well: this finds wrong results, not lost digits.
SAMPLE_BAR = 2e-5
SAMPLE = 256

Results = dict[str, Tensor]


class Cotangents(NamedTuple):
    """Of the output, for the first derivatives; and for the second ones, those of the output and
    of the forces. Those that a pass does not need are left out.
    """

    out: Tensor | None = None
    energy: Tensor | None = None
    forces: Tensor | None = None

    @classmethod
    def make(cls, contender: Contender, which: str) -> Cotangents:
        if which == "forward":
            return cls()
        with torch.no_grad():
            out = contender.call()
        generator = torch.Generator(out.device).manual_seed(3)
        if which == "forward+backward":
            return cls(_normal_like(out, generator))
        like = (out, out, contender.leaves["pos"])
        return cls(*(_normal_like(tensor, generator) for tensor in like))

    def to(self, dtype: torch.dtype) -> Cotangents:
        return Cotangents(*(None if t is None else t.to(dtype) for t in self))


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """With the strides of ``tensor``, as the derivative of what follows would have."""
    return torch.empty_like(tensor, requires_grad=False).normal_(generator=generator)


def forward(contender: Contender, cotangents: Cotangents) -> Results:
    with torch.no_grad():
        return {"out": contender.call()}


def forward_backward(contender: Contender, cotangents: Cotangents) -> Results:
    """The output and its derivatives by all inputs."""
    out = contender.call()
    leaves = contender.leaves
    grads = torch.autograd.grad(out, list(leaves.values()), cotangents.out)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def second_order(contender: Contender, cotangents: Cotangents) -> Results:
    r"""What a training step with forces asks of an operation.

    The energy is a function of the output ``y``, whose gradient ``w`` is the cotangent of the
    first backward; forces are :math:`-w^\top \partial y / \partial x`; the loss depends on energy
    and forces. Its gradient goes to all inputs and, since ``w`` depends on ``y``, to ``w``. The
    energy function itself is left out: it is the same for all and no part of the operation.
    """
    assert cotangents.out is not None
    leaves, w = contender.leaves, cotangents.out.detach().requires_grad_()
    out = contender.call()
    (gradient,) = torch.autograd.grad(out, leaves["pos"], w, create_graph=True)
    forces = -gradient
    inputs = {**leaves, "w": w}
    grads = torch.autograd.grad(
        (out, forces), list(inputs.values()), (cotangents.energy, cotangents.forces)
    )
    return {"out": out.detach(), "forces": forces.detach(), **dict(zip(inputs, grads, strict=True))}


PASSES: dict[str, Callable[[Contender, Cotangents], Results]] = {
    "forward": forward,
    "forward+backward": forward_backward,
    "second-order": second_order,
}


def relative_error(value: Tensor, reference: Tensor) -> float:
    reference = reference.double()
    error = float((value.double() - reference).norm() / reference.norm())
    return math.inf if math.isnan(error) else error  # which is larger than any bar


def _bar(which: str, name: str, dtype: torch.dtype) -> float:
    if dtype in (torch.bfloat16, torch.float16):
        return BFLOAT16_BAR
    if name == "out":
        return BARS[0]
    return BARS[1] if name == "forces" or which == "forward+backward" else BARS[2]


class Errors(NamedTuple):
    """Relative errors by name, and by how much the worst one exceeds its bar."""

    by_name: dict[str, float]
    excess: float

    @property
    def headline(self) -> float:
        """That of the output, or the worst one of the derivatives of the highest order."""
        names = [name for name in self.by_name if name not in ("out", "forces")]
        return max(self.by_name[name] for name in names or ["out"])

    def joined(self, other: Errors) -> Errors:
        return Errors({**self.by_name, **other.by_name}, max(self.excess, other.excess))


def _joined(results: Results) -> Results:
    """All parameters of a layer count as one vector."""
    parameters = [value.flatten() for name, value in results.items() if "." in name]
    joined = {name: value for name, value in results.items() if "." not in name}
    return {**joined, "parameters": torch.cat(parameters)} if parameters else joined


def accuracy(problem: Problem, contender: Contender, which: str) -> Errors:
    """Against the PyTorch backend in float64 on the same inputs."""
    run = PASSES[which]
    reference = problem.double().ours("torch")
    cotangents = Cotangents.make(contender, which)
    expected = _joined(run(reference, cotangents.to(torch.float64)))
    results = _joined(run(contender, cotangents))
    errors = {name: relative_error(results[name], expected[name]) for name in expected}
    dtype = problem.setting.dtype
    return Errors(errors, max(e / _bar(which, name, dtype) for name, e in errors.items()))


def full_size_errors(problem: Problem, results: Results, cotangents: Cotangents) -> Errors:
    """What can be checked at any size: the output at a sample of the targets, and that the
    derivative by the values, in which operations are linear, gives their output back.
    """
    out = results["out"]
    generator = torch.Generator().manual_seed(4)
    targets = torch.randperm(out.size(0), generator=generator)[:SAMPLE].to(out.device)
    part = problem.part(targets).ours("torch")
    with torch.no_grad():
        errors = {"sample": relative_error(out[targets], part.call())}
    if "v" in results and cotangents.energy is None:
        assert cotangents.out is not None
        products = out.double() * cotangents.out
        values = problem.ours("torch").leaves["v"].detach().double()
        difference = products.sum() - (results["v"].double() * values).sum()
        errors["linear"] = relative_error(products.norm() + difference, products.norm())
    low_precision = out.dtype in (torch.bfloat16, torch.float16)
    bar = BFLOAT16_BAR if low_precision else SAMPLE_BAR
    return Errors(errors, max(errors.values()) / bar)
