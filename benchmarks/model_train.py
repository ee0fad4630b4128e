"""Training steps of whole models with energies and forces."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attention_measure import Meter
from model_systems import System, describe, make_model, relative, timed
from torch import Tensor, nn

from e2former_pyg.tracing import trace_gradients

CHECKED_ATOMS = 2048
# Of float32 gradients beside float64.
TOLERANCE = 1e-3

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def loss_on(system: System) -> Loss:
    def loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        out = model(system.z, inputs["pos"], **system.graph)
        energy = (out.energy - inputs["energy"]).square().mean()
        return energy + (out.forces - inputs["forces"]).square().mean()

    return loss


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-5, fused=True)


def eager_step(
    settings: dict[str, Any], system: System, device: str, backend: str
) -> Callable[[], dict[str, Tensor]]:
    model = make_model(settings, device, backend)
    optimizer, parameters = optimizer_of(model), list(model.parameters())
    loss, labels = loss_on(system), system.labels()

    def step() -> dict[str, Tensor]:
        value = loss(model, labels)
        optimizer.zero_grad()
        value.backward(inputs=parameters)
        optimizer.step()
        return {"loss": value.detach()}

    return step


def train(meter: Meter, settings: dict[str, Any], name: str, system: System) -> dict[str, Any]:
    device = str(meter.device)
    model = make_model(settings, device)
    optimizer, labels = optimizer_of(model), system.labels()
    loss_on(system)(model, labels)  # kernels compile, caches fill
    start = time.perf_counter()
    traced = trace_gradients(model, loss_on(system), labels, cuda_graph=meter.is_cuda)
    tracing = time.perf_counter() - start
    traced(labels)
    error = gradient_error(settings, system, device, model)

    def step() -> None:
        traced(labels)
        optimizer.step()

    runs: dict[str, Callable[[], Any]] = {"ours": step}
    runs["eager"] = eager_step(settings, system, device, "auto")
    runs["baseline"] = eager_step(settings, system, device, "torch")
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
