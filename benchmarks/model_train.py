"""Training steps of whole models with energies and forces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from attention_measure import Meter
from model_systems import System, describe, make_model, relative, timed
from torch import Tensor, nn

from e2former_pyg.tracing import trace_gradients

CHECKED_ATOMS = 2048
# Of float32 gradients beside float64.
TOLERANCE = 1e-3

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
Step = Callable[[], dict[str, Tensor]]


def squared_errors(energy: Tensor, forces: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    of_energy = (energy - labels["energy"]).square().mean()
    return of_energy + (forces - labels["forces"]).square().mean()


def loss_on(system: System) -> Loss:
    def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        out = model(system.z, inputs["pos"], **system.graph)
        return squared_errors(out.energy, out.forces, inputs)

    return loss


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-5, fused=True)


def eager_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer, parameters = optimizer_of(model), list(model.parameters())

    def step() -> dict[str, Tensor]:
        value = loss()
        optimizer.zero_grad()
        value.backward(inputs=parameters)
        optimizer.step()
        return {"loss": value.detach()}

    return step


class Traced(NamedTuple):
    """A training step without autograd, with the gradients of its first call."""

    model: nn.Module
    step: Step
    seconds: float


def traced_step(meter: Meter, settings: dict[str, Any], system: System) -> Traced:
    model = make_model(settings, str(meter.device))
    optimizer, labels = optimizer_of(model), system.labels()
    loss_on(system)(model, labels)  # kernels compile, caches fill
    start = time.perf_counter()
    traced = trace_gradients(model, loss_on(system), labels, cuda_graph=meter.is_cuda)
    seconds = time.perf_counter() - start
    traced(labels)

    def step() -> dict[str, Tensor]:
        value = traced(labels)
        optimizer.step()
        return {"loss": value}

    return Traced(model, step, seconds)


def train(meter: Meter, settings: dict[str, Any], name: str, system: System) -> dict[str, Any]:
    device = str(meter.device)
    model, step, tracing = traced_step(meter, settings, system)
    error = gradient_error(settings, system, device, model)
    runs: dict[str, Step] = {"ours": step}
    for what, backend in (("eager", "auto"), ("baseline", "torch")):
        other = make_model(settings, device, backend)
        runs[what] = eager_step(other, partial(loss_on(system), other, system.labels()))
    record = describe(name, system) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "relative_error": error,
        "tracing_s": tracing,
        "peak_mib": meter.peak(runs["eager"])[1],
        "baseline_peak_mib": meter.peak(runs["baseline"])[1],
    }
    return record | timed(meter, runs, error is None or error < TOLERANCE)


def gradient_error(
    settings: dict[str, Any], system: System, device: str, model: nn.Module
) -> float | None:
    """Of the gradients that ``model`` holds beside ``backend="torch"`` in float64."""
    if system.z.numel() > CHECKED_ATOMS:
        return None
    exact = make_model(settings, device, "torch").double()
    labels = {name: value.double() for name, value in system.labels().items()}
    parameters = list(exact.parameters())
    loss_on(system.to(torch.float64))(exact, labels).backward(inputs=parameters)
    pairs = [
        (
            found.grad.flatten(),
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten(),
        )
        for found, p in zip(model.parameters(), parameters, strict=True)
    ]
    found, expected = (torch.cat(column) for column in zip(*pairs, strict=True))
    return relative(found, expected)
