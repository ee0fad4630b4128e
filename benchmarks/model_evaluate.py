"""Energy and forces of whole models: times, memory and the shares of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attention_measure import MIB, Meter
from model_systems import DENSITY, System, describe, make_model, relative, solid, timed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from e2former_pyg.graph import radius_graph

CHECKED_ATOMS = 1024
# Of float32 forces beside float64, and of a CUDA graph beside the potential itself.
TOLERANCE = 1e-4
PARTS = {
    "attention": ("forward_kernel", "backward_rows", "backward_columns", "normaliser", "tangent"),
    "linear maps": ("rows_kernel", "matrix_kernel"),
    "other products": ("gemm", "gemv", "splitKreduce"),
    "norms, gates, invariants": (
        *("normalize", "gate_kernel", "sums_kernel", "spread_kernel"),
        *("node_norm", "backward_kernel", "second_kernel"),
    ),
}
SIZES = (204_800, 307_200, 409_600, 512_000, 614_400, 819_200, 1_024_000)


def force_error(settings: dict[str, Any], system: System, device: str) -> float | None:
    """Of float32 forces beside ``backend="torch"`` in float64."""
    if system.z.numel() > CHECKED_ATOMS:
        return None
    exact = system.to(torch.float64)
    with torch.no_grad():
        found = make_model(settings, device).eval()(system.z, system.pos, **system.graph)
        model = make_model(settings, device, "torch").double().eval()
        return relative(found.forces, model(exact.z, exact.pos, **exact.graph).forces)


def evaluate(
    meter: Meter, settings: dict[str, Any], name: str, system: System, baseline: bool
) -> dict[str, Any]:
    device = str(meter.device)
    model = make_model(settings, device).eval()
    fast = model.compile_for_inference()
    z, pos, graph = system.z, system.pos, system.graph

    def forces_of(model: Any) -> Callable[[], dict[str, Tensor]]:
        @torch.no_grad()
        def run() -> dict[str, Tensor]:
            return {"forces": model(z, pos, **graph).forces}

        return run

    runs = {"ours": forces_of(fast), "eager": forces_of(model)}
    for _ in range(2):
        found = runs["ours"]()["forces"]
    results, peak = meter.peak(forces_of(fast.potential))
    agreement = relative(found, results["forces"].double())
    error = force_error(settings, system, device)
    feature = 4 * z.numel() * (settings["lmax"] + 1) ** 2 * settings["hidden_channels"] / MIB
    record = describe(name, system) | {
        "peak_mib": peak,
        "feature_mib": feature,
        "relative_error": error,
        "graph_error": agreement,
        "python_ms": meter.host_time(runs["eager"]),
    }
    if system.edge_shift is not None:
        cell = (z.numel() / DENSITY) ** (1 / 3) * torch.eye(3, device=pos.device)
        (search,) = meter.times([lambda: radius_graph(pos, settings["cutoff"], cell=cell)])
        record["search_ms"] = search.median
    if baseline:
        theirs = forces_of(make_model(settings, device, "torch").eval())
        try:
            record["baseline_peak_mib"] = meter.peak(theirs)[1]
            runs["baseline"] = theirs
        except torch.OutOfMemoryError:
            meter.release()
    right = agreement < TOLERANCE and (error is None or error < TOLERANCE)
    return record | timed(meter, runs, right)


def largest(
    meter: Meter, settings: dict[str, Any], name: str, checkpointing: bool
) -> dict[str, Any]:
    """The largest number of atoms of :data:`SIZES` that fits."""
    device = str(meter.device)
    model = make_model(settings, device)
    model.backbone.activation_checkpointing = checkpointing
    fast = model.compile_for_inference()
    record: dict[str, Any] = {}
    for atoms in SIZES:
        try:
            record = _one_size(meter, fast, name, atoms)
        except torch.OutOfMemoryError:
            break
        finally:
            meter.release()
    return record


def _one_size(meter: Meter, fast: Any, name: str, atoms: int) -> dict[str, Any]:
    system = solid(atoms, str(meter.device))

    def run() -> dict[str, Tensor]:
        return {"forces": fast(system.z, system.pos, **system.graph).forces}

    _, peak = meter.peak(run)
    few = Meter(str(meter.device), 3, 0)
    return describe(name, system) | {"peak_mib": peak} | timed(few, {"ours": run}, True)


def shares(meter: Meter, settings: dict[str, Any], name: str, system: System) -> dict[str, Any]:
    """Which kernels take the time on the GPU of one evaluation."""
    model = make_model(settings, str(meter.device)).compile_for_inference().potential

    @torch.no_grad()
    def run() -> None:
        model(system.z, system.pos, **system.graph)

    run()
    meter.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        meter.synchronize()
    found = profiler.key_averages()
    events = [e for e in found if e.device_type == torch.autograd.DeviceType.CUDA]
    parts = dict.fromkeys((*PARTS, "everything else"), 0.0)
    for event in events:
        owners = (p for p, words in PARTS.items() if any(word in event.key for word in words))
        parts[next(owners, "everything else")] += 1e-3 * event.self_device_time_total
    return describe(name, system) | {
        "parts_ms": parts,
        "ours_ms": sum(parts.values()),
        "launches": sum(event.count for event in events),
        "baseline": None,
        "ratio": None,
        "right": True,
    }
