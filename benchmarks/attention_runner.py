"""Runs one case: first whether the result is right, then memory and time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from attention_cases import Case
from attention_measure import MIB, Meter, Timing
from attention_passes import (
    BARS,
    PASSES,
    Cotangents,
    Errors,
    Results,
    accuracy,
    full_size_errors,
    relative_error,
)
from attention_problems import Contender, Problem, make_problem
from attention_systems import Setting

Run = Callable[[], Results]

# Small enough for derivatives in float64, and inside 20 Å from the origin.
ACCURACY_ATOMS = 1024
# Useful operations of a pass, in forward passes. A first derivative by all inputs takes two: each
# product has two factors. Forces are the derivative by one factor, and their derivative and that
# of the output take two each.
WORK = {"forward": 1, "forward+backward": 3, "second-order": 6}


class Runner:
    """Runs cases on one device, with one backend."""

    def __init__(self, meter: Meter, backend: str) -> None:
        self.meter = meter
        self.backend = backend
        self.device = str(meter.device)
        self.bandwidth = meter.bandwidth()
        self._accuracy = cache(self._measure_accuracy)

    def __call__(self, case: Case) -> dict[str, Any]:
        """The record of a case."""
        atoms = case.atoms
        while True:
            problem = make_problem(case.kind, case.setting, atoms, self.device)
            baseline, memory = self._baseline(case, problem)
            if baseline is None and case.shrink and atoms > 1:
                atoms //= 2
                continue
            record = self._measure(case, problem, baseline)
            return {**record, "baseline_peak_mib": memory}

    def _baseline(self, case: Case, problem: Problem) -> tuple[Run | None, float | None]:
        """The run of the baseline and its peak memory, if it fits."""
        if case.baseline is None:
            return None, None
        try:
            run = _run(problem.baseline(case.baseline), case.which)
            return run, self.meter.peak(run)[1]
        except torch.OutOfMemoryError:
            pass
        self.meter.release()  # after the exception, whose frames hold tensors
        return None, None

    def _measure(self, case: Case, problem: Problem, baseline: Run | None) -> dict[str, Any]:
        ours = problem.ours(self.backend)
        cotangents = Cotangents.make(ours, case.which)
        run: Run = partial(PASSES[case.which], ours, cotangents)
        atoms = problem.graph.neighborhood.num_targets
        small = min(atoms, ACCURACY_ATOMS)
        errors = self._accuracy(case.kind, case.setting, case.which, small)
        results, peak = self.meter.peak(run)
        errors = errors.joined(full_size_errors(problem, results, cotangents))
        out_bytes = results["out"].nbytes

        runs = [run] if baseline is None else [run, baseline]
        hosts = [None if case.mode == "stream" else self.meter.host_time(one) for one in runs]
        if case.mode == "graph":
            graphs = [self.meter.captured(one) for one in runs]
            runs = [replay for replay, _ in graphs]
            runs[0]()
            error = relative_error(graphs[0][1]["out"], results["out"])
            errors = errors.joined(Errors({"graph": error}, error / BARS[0]))
        del results
        timings = self._times(runs, wait=case.mode != "stream")

        work = problem.useful_operations()
        work = None if work is None else WORK[case.which] * work
        record = {
            "case": case.name,
            "group": case.group,
            "pass": case.which,
            "atoms": atoms,
            "edges": problem.graph.num_edges,
            **_describe(case.setting),
            "backend": self.backend,
            "baseline": case.baseline,
            "peak_mib": peak,
            "node_tensor_mib": _node_tensor_mib(case.setting, atoms),
            "floor_ms": 1e3 * moved_bytes(ours, out_bytes, case.which) / self.bandwidth,
            "copy_tb_s": 1e-12 * self.bandwidth,
            "relative_error": _finite(errors.headline),
            "relative_errors": {name: _finite(error) for name, error in errors.by_name.items()},
            "right": errors.excess <= 1,
        }
        return {**record, **_rates(timings, hosts, work, record["right"])}

    def _times(self, runs: list[Run], wait: bool) -> list[Timing]:
        """Without the baseline where both do not fit into memory together."""
        try:
            return self.meter.times(runs, wait)
        except torch.OutOfMemoryError:
            if len(runs) == 1:
                raise
        self.meter.release()
        return self.meter.times(runs[:1], wait)

    def _measure_accuracy(self, kind: str, setting: Setting, which: str, atoms: int) -> Errors:
        problem = make_problem(kind, setting, atoms, self.device)
        return accuracy(problem, problem.ours(self.backend), which)


def _run(contender: Contender, which: str) -> Run:
    return partial(PASSES[which], contender, Cotangents.make(contender, which))


def _rates(
    timings: list[Timing], hosts: list[float | None], work: int | None, right: bool
) -> dict[str, Any]:
    """Times and what follows from them; a wrong result has no speed."""
    record: dict[str, Any] = {"runs": timings[0].runs}
    padded = zip(("", "baseline_"), [*timings, None][:2], [*hosts, None][:2], strict=True)
    for name, timing, host in padded:
        median = None if timing is None else timing.median
        record[f"{name or 'ours_'}ms"] = median
        record[f"{name}spread"] = None if timing is None else timing.spread
        record[f"{name}python_ms"] = host
        known = median is not None and work is not None and (right or name)
        record[f"{name}tflops"] = 1e-9 * work / median if known else None  # type: ignore[operator]
    known = right and record["baseline_ms"] is not None
    record["ratio"] = record["baseline_ms"] / record["ours_ms"] if known else None
    return record


def moved_bytes(contender: Contender, out_bytes: int, which: str) -> int:
    """Bytes of reading and writing each node tensor once in each of the passes over the nodes."""
    nodes = contender.leaves["pos"].size(0)
    inputs = sum(
        leaf.nbytes
        for name, leaf in contender.leaves.items()
        if not name.startswith("parameters.") and leaf.size(0) == nodes
    )
    pos = contender.leaves["pos"].nbytes
    forward = inputs + out_bytes
    if which == "forward":
        return forward
    if which == "forward+backward":  # inputs and cotangent to gradients
        return forward + inputs + out_bytes + inputs
    # Inputs and w to forces; inputs, w and two cotangents to the gradients of inputs and w.
    return forward + (inputs + out_bytes + pos) + (2 * inputs + 3 * out_bytes + pos)


def _finite(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


def _node_tensor_mib(setting: Setting, atoms: int) -> float:
    rows = setting.coupling.num_inputs
    return atoms * rows * setting.channels * setting.dtype.itemsize / MIB


def _describe(setting: Setting) -> dict[str, Any]:
    return {
        "lmax": setting.lmax,
        "orders": list(setting.orders),
        "cutoff": setting.cutoff,
        "channels": setting.channels,
        "heads": setting.heads,
        "dtype": str(setting.dtype).removeprefix("torch."),
    }
